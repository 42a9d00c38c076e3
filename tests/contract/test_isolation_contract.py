"""The contract of isolation: what a machine shares with its host, and what it does not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.ports import Guest

from .conftest import Place, machine, only_local
from .door import ask, broken_door, get, serve_door
from .providers import Offer

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _local(offer: Offer) -> None:
    only_local(offer)


async def test_the_session_directory_is_in_the_guest_and_what_the_guest_makes_of_it_comes_back(offer: Offer) -> None:
    """Whether it is shared or copied to a disk and back."""
    async with machine(offer, fill=_fill) as place:
        async with place.guest() as guest:
            assert await guest.read("/session/below/from-host") == b"host"
            await guest.write("/session/below/from-host", b"changed")
            await guest.write_atomic("/session/below/from-guest", b"guest", mode=0o600)
            await guest.mkdir("/session/below/closed", mode=0o700)
            await guest.remove("/session/below/gone")
        await offer.provider.stop(place.name)
        below = place.session / "below"
        assert {path.name for path in below.iterdir()} == {"from-host", "from-guest", "closed"}
        assert (below / "from-host").read_bytes() == b"changed"
        assert (below / "from-guest").read_bytes() == b"guest"
        assert {path.stat().st_uid for path in below.iterdir()} == {os.geteuid()}
        (below / "closed").rmdir()
        (below / "from-guest").unlink()


def _fill(session: Path) -> None:
    (session / "below").mkdir()
    (session / "below/gone").touch()
    (session / "below/from-host").write_bytes(b"host")
    (session / "below/from-host").chmod(0o600)


async def test_the_door_answers(guest: Guest, shared: Place) -> None:
    for number in range(3):
        result = await guest.run(ask(shared.offer.provider.capabilities, f"/{number}"), timeout=60)
        assert result.stdout.endswith(f"the door of the shared machine /{number}".encode()), result


async def test_many_connections_go_through_the_door_at_once(guest: Guest, shared: Place) -> None:
    capabilities = shared.offer.provider.capabilities
    answers: list[bytes] = []

    async def one(number: int) -> None:
        answers.append((await guest.run(ask(capabilities, f"/{number}"), timeout=60)).stdout.rpartition(b"/")[2])

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)
    assert sorted(answers) == sorted(b"%d" % number for number in range(10))


async def test_a_door_that_is_away_is_waited_for(place: Place) -> None:
    question = ask(place.offer.provider.capabilities, "/hello")
    async with place.guest() as guest:
        for answer in ("the first", "the second"):
            came = anyio.Event()
            results: list[bytes] = []

            async def wait(results: list[bytes] = results, came: anyio.Event = came) -> None:
                results.append((await guest.run(question, timeout=60)).stdout)
                came.set()

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await anyio.sleep(0.5)
                assert not came.is_set()
                with serve_door(place.door, answer):
                    await came.wait()
            assert results[0].endswith(f"{answer} /hello".encode())


async def test_what_the_door_breaks_off_ends_without_a_byte(place: Place) -> None:
    """The forwarder must print no error to the guest: an agent would take it for an answer."""
    async with place.guest() as guest:
        with broken_door(place.door):
            result = await guest.run(ask(place.offer.provider.capabilities, "/"), timeout=60)
    assert result.stdout == b""


@contextmanager
def _listener(host: str) -> Iterator[tuple[int, list[str]]]:
    """Run a server on the host that records its connections."""
    came: list[str] = []
    with socket.create_server((host, 0)) as server:

        def accept() -> None:
            while True:
                try:
                    peer, address = server.accept()
                except OSError:
                    return
                came.append(str(address))
                peer.close()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], came
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_nothing_but_the_door_is_reached(guest: Guest) -> None:
    with _listener("0.0.0.0") as (port, came):
        socket.create_connection(("127.0.0.1", port)).close()
        addresses = ["127.0.0.1", "10.0.2.2", "172.17.0.1", "192.0.2.1", *_own_addresses()]
        for address in addresses:
            question = get(address, port)
            bounded = Command(argv=("timeout", "3", *question.words()))
            result = await guest.run(bounded, timeout=60)
            assert not result.ok, f"{address} was reached: {result}"
        assert len(came) == 1, f"the host was reached: {came}"


def _own_addresses() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


async def test_names_are_not_resolved(guest: Guest) -> None:
    result = await guest.run(Command(shell="timeout 5 bash -c 'exec 3<>/dev/tcp/example.org/80'"), timeout=60)
    assert not result.ok


async def test_the_host_is_not_seen(guest: Guest, shared: Place) -> None:
    # A directory that only the host has: the parent of the shared session.
    assert not await guest.exists(str(shared.session))
    listing = await guest.run(Command(shell="cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"))
    assert b"pytest" not in listing.stdout
