"""The sample of the docs when its program is killed: its machines live, and are found again."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import GuestDisconnected
from hiveyard.core.ports import Guest
from tests.contract.providers import SAMPLE, Offer, external
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


@pytest.fixture
async def offer() -> AsyncIterator[Offer]:
    with searched_directory() as scratch:
        async with external(scratch) as offer:
            await offer.provider.prepare(offer.image, offer.shape)
            await offer.provider.boot("m1", offer.spec())
            yield offer
            await offer.provider.terminate("m1")


def stat(entry: Path) -> list[str]:
    """The fields behind the program's name: the second is the parent, the twentieth when it began."""
    try:
        return (entry / "stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["", "0"]


def program() -> int:
    """The sample's process: the youngest child of ours that it is. Another offer may have one too."""
    ours = [one for one in Path("/proc").iterdir() if one.name.isdigit() and stat(one)[1] == str(os.getpid())]
    samples = [one for one in ours if SAMPLE[1].encode() in (one / "cmdline").read_bytes().split(b"\0")]
    return int(max(samples, key=lambda one: int(stat(one)[19])).name)


async def appears(guest: Guest, path: str) -> None:
    while not await guest.exists(path):  # noqa: ASYNC110 (it is in a machine)
        await anyio.sleep(0.05)


async def test_a_command_under_a_killed_program_is_disconnected_and_the_machine_is_used_again(offer: Offer) -> None:
    async with offer.provider.guest("m1") as guest, anyio.create_task_group() as group:

        async def kill() -> None:
            await appears(guest, "/tmp/begun")
            os.kill(program(), signal.SIGKILL)

        group.start_soon(kill)
        with anyio.fail_after(60), pytest.raises(GuestDisconnected):
            await guest.run(Command(shell="touch /tmp/begun; sleep 1000"))
        assert await guest.exists("/tmp/begun")


async def test_who_follows_a_file_does_not_notice(offer: Offer) -> None:
    async with offer.provider.guest("m1") as guest:
        await guest.write("/tmp/log", b"one ")
        said = b""
        with anyio.fail_after(60):
            async for piece in guest.follow("/tmp/log"):
                said += piece
                if said == b"one ":
                    os.kill(program(), signal.SIGKILL)
                    # The first who asks may be told that the program ended under the question.
                    with contextlib.suppress(GuestDisconnected):
                        await guest.exists("/")
                    await guest.write("/tmp/more", b"two")
                    assert (await guest.run(Command(shell="cat /tmp/more >>/tmp/log"))).ok
                elif said == b"one two":
                    break
        assert said == b"one two"


async def test_the_program_ends_with_its_provider_and_the_machine_goes_on(offer: Offer) -> None:
    pid = program()
    await offer.provider.aclose()  # type: ignore[attr-defined]
    assert not Path(f"/proc/{pid}").exists()
    assert (await offer.again().get("m1")).status == "ready"
