"""The contract of guests for following files that grow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import GuestFileError, GuestIsADirectory, MachineLost
from hiveyard.core.ports import Guest
from hiveyard.kit.names import new_id

from .conftest import Place

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def following(
    guest: Guest, path: str, offset: int = 0, pid: int | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    async with aclosing(cast(Any, guest.follow(path, offset=offset, pid=pid))) as pieces:
        yield pieces


async def _until(pieces: AsyncIterator[bytes], end: bytes) -> bytes:
    got = b""
    with anyio.fail_after(60):
        while not got.endswith(end):
            got += await anext(pieces)
    return got


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    with anyio.fail_after(60):
        return b"".join([piece async for piece in pieces])


async def _start(guest: Guest, script: str, *arguments: str) -> int:
    """Start a script in the guest in the background, and return its pid."""
    start = 'bash -c "$1" "$@" </dev/null >/dev/null 2>&1 & echo $!'
    result = await guest.run(Command(argv=("setsid", "bash", "-c", start, "start", script, *arguments)))
    return int(result.stdout)


async def test_what_is_there_is_given_and_then_what_is_added(guest: Guest, folder: str) -> None:
    path = f"{folder}/log"
    await guest.write(path, b"one\n")
    async with following(guest, path) as pieces:
        assert await _until(pieces, b"one\n") == b"one\n"
        for line in (b"two\n", b"three\n", b"\x00\xff\n"):
            await guest.run(Command(argv=("bash", "-c", 'cat >>"$1"', "add", path)), stdin=line)
            assert await _until(pieces, line) == line


@pytest.mark.parametrize("offset", [0, 1, 4, 7])
async def test_following_begins_at_an_offset(guest: Guest, folder: str, offset: int) -> None:
    path = f"{folder}/log"
    await guest.write(path, b"0123456")
    async with following(guest, path, offset) as pieces:
        await guest.run(Command(argv=("bash", "-c", 'printf END >>"$1"', "add", path)))
        assert await _until(pieces, b"END") == b"0123456END"[offset:]


async def test_a_file_that_is_not_there_yet_is_waited_for(guest: Guest, folder: str) -> None:
    path = f"{folder}/later/log"
    async with following(guest, path) as pieces, anyio.create_task_group() as group:

        async def make() -> None:
            await anyio.sleep(0.3)
            await guest.mkdir(f"{folder}/later")
            await guest.write(path, b"here\n")

        group.start_soon(make)
        assert await _until(pieces, b"here\n") == b"here\n"


async def test_following_ends_when_the_process_has_ended_and_all_was_given(guest: Guest, folder: str) -> None:
    path = f"{folder}/log"
    pid = await _start(guest, 'for i in 1 2 3; do echo $i; sleep 0.2; done >"$1"; printf last >>"$1"', path)
    async with following(guest, path, 2, pid) as pieces:
        assert await _all(pieces) == b"2\n3\nlast"


async def test_the_output_of_a_process_that_has_ended_before_is_given_whole(guest: Guest, folder: str) -> None:
    path = f"{folder}/log"
    await guest.write(path, bytes(3_000_000))
    async with following(guest, path, 0, 4_000_000) as pieces:
        assert len(await _all(pieces)) == 3_000_000


async def test_a_process_that_ended_without_a_file_gives_nothing(guest: Guest, folder: str) -> None:
    async with following(guest, f"{folder}/never", 0, 4_000_000) as pieces:
        assert await _all(pieces) == b""


async def test_a_process_that_writes_fast_loses_nothing(guest: Guest, folder: str) -> None:
    path = f"{folder}/log"
    pid = await _start(guest, 'seq 1 400000 >"$1"', path)
    async with following(guest, path, 0, pid) as pieces:
        assert await _all(pieces) == b"".join(b"%d\n" % number for number in range(1, 400_001))


async def test_several_follow_one_file(guest: Guest, folder: str) -> None:
    path = f"{folder}/log"
    got: list[bytes] = []

    async def listen() -> None:
        async with following(guest, path) as pieces:
            got.append(await _until(pieces, b"end\n"))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(listen)
        await guest.write(path, b"begin\n")
        await guest.run(Command(argv=("bash", "-c", 'echo end >>"$1"', "add", path)))
    assert got == [b"begin\nend\n"] * 3


async def test_a_listener_that_leaves_takes_its_processes_along(guest: Guest, folder: str) -> None:
    for path in (f"{folder}/log", f"{folder}/never"):
        await guest.write(f"{folder}/log", b"x")
        async with anyio.create_task_group() as group:

            async def listen(path: str = path) -> None:
                async with following(guest, path) as pieces:
                    await _until(pieces, b"never comes")

            group.start_soon(listen)
            await _mentioned(guest, path, True)
            group.cancel_scope.cancel()
        await _mentioned(guest, path, False)


async def _mentioned(guest: Guest, path: str, wanted: bool) -> None:
    with anyio.fail_after(20):
        while bool(await _mentioning(guest, path)) is not wanted:  # noqa: ASYNC110 (a guest sends no event)
            await anyio.sleep(0.05)


async def _mentioning(guest: Guest, path: str) -> int:
    """Count the processes of the guest with this path as a word of their command line."""
    script = r"""read -r path; n=0
    for d in /proc/[0-9]*; do
      { mapfile -d '' -t words <"$d/cmdline"; } 2>/dev/null
      for word in "${words[@]}"; do [[ $word == "$path" ]] && ((n++)); done
    done; echo $n"""
    return int((await guest.run(Command(shell=script), stdin=path.encode() + b"\n")).stdout)


async def test_a_directory_or_a_pipe_cannot_be_followed(guest: Guest, folder: str) -> None:
    # Not below /session: a share over 9p carries no pipes.
    pipe = f"/tmp/pipe-{new_id()}"
    assert (await guest.run(Command(argv=("mkfifo", pipe)))).ok
    with pytest.raises(GuestIsADirectory):
        async with following(guest, folder) as pieces:
            await _all(pieces)
    with pytest.raises(GuestFileError):
        async with following(guest, pipe) as pieces:
            await _all(pieces)


async def test_a_machine_that_dies_is_an_error_for_those_who_follow(place: Place) -> None:
    crash = place.offer.crash
    async with place.guest() as guest:
        await guest.write("/session/log", b"x")
        async with following(guest, "/session/log") as pieces:
            await _until(pieces, b"x")
            await crash(place.name)
            with anyio.fail_after(60), pytest.raises(MachineLost):
                await anext(pieces)
