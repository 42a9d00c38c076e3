"""Forward ports of the host to ports of a guest, on every provider."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.errors import BadInput
from hiveyard.core.machines import Tier
from hiveyard.core.ports import Guest
from hiveyard.engine.access.forwarding import connect_command, relay
from hiveyard.engine.access.host_ports import HostPorts, Owner, ReservedPort
from hiveyard.kit.names import new_id
from hiveyard.processes.detached import Detached
from tests.contract.conftest import Place

pytestmark = pytest.mark.anyio
PATIENCE = 60.0


@asynccontextmanager
async def opened(place: Place, scratch: Path, port: int) -> AsyncIterator[int]:
    """Yield a host port that leads to a port of the guest."""
    ports = HostPorts(scratch / "ports")
    held = await ports.reserve(Owner("s", "a session"))
    async with anyio.create_task_group() as group:
        group.start_soon(relay, held, place.guest, connect_command(port))
        try:
            yield held.port
        finally:
            group.cancel_scope.cancel()
            await ports.release(held)


@asynccontextmanager
async def served(guest: Guest, port: int, answer: str, *, address: str = "TCP4-LISTEN") -> AsyncIterator[None]:
    """Run a server in the guest that runs a shell script for each connection."""
    name = new_id()
    listen = f"{address}:{port},fork,reuseaddr,backlog=256"
    argv = ("socat", "-t", "1000", listen, f"SYSTEM:{answer}")
    await Detached().start(guest, ProcessSpec(name=name, command=Command(argv=argv)))
    hexed, look = f":{port:04X} ", Command(shell="cat /proc/net/tcp /proc/net/tcp6")
    with anyio.fail_after(PATIENCE):
        while hexed not in (await guest.run(look)).stdout.decode():  # noqa: ASYNC110
            await anyio.sleep(0.05)
    yield
    await Detached().stop(guest, name, grace=0)


async def ask(port: int, data: bytes) -> bytes:
    """Send data, end our side, and read until the end."""
    answer = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as connection:
        await connection.send(data)
        await connection.send_eof()
        async for piece in connection:
            answer += piece
    return answer


@pytest.mark.parametrize("address", ["TCP4-LISTEN", "TCP6-LISTEN"])
async def test_one_direction_can_end_before_the_other(
    shared: Place, guest: Guest, tmp_path: Path, address: str
) -> None:
    async with (
        served(guest, 8123, "wc -c; echo after the end", address=address),
        opened(shared, tmp_path, 8123) as port,
    ):
        with anyio.fail_after(PATIENCE):
            assert await ask(port, b"x" * 5000) == b"5000\nafter the end\n"


async def test_a_server_may_send_first_and_an_idle_connection_stays_open(
    shared: Place, guest: Guest, tmp_path: Path
) -> None:
    async with served(guest, 8124, "echo welcome; cat"), opened(shared, tmp_path, 8124) as port:
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", port) as connection:
                assert await connection.receive() == b"welcome\n"
                await anyio.sleep(2)
                await connection.send(b"hello")
                assert await connection.receive() == b"hello"


async def test_a_connection_to_a_closed_guest_port_closes_at_once(shared: Place, tmp_path: Path) -> None:
    async with opened(shared, tmp_path, 8125) as port:
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", port) as connection:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await connection.receive()


async def test_concurrent_connections_do_not_mix(shared: Place, guest: Guest, tmp_path: Path) -> None:
    many = 20 if shared.offer.provider.tier is Tier.VM else 100

    async def one(port: int) -> None:
        word = secrets.token_bytes(1000)
        assert await ask(port, word) == word

    async with served(guest, 8126, "cat"), opened(shared, tmp_path, 8126) as port:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(many):
                    group.start_soon(one, port)


async def test_large_data_arrives_complete(shared: Place, guest: Guest, tmp_path: Path) -> None:
    size = (16 << 20) if shared.offer.provider.tier is Tier.VM else (256 << 20)
    got, length = hashlib.sha256(), 0
    async with served(guest, 8127, f"head -c {size} /dev/zero"), opened(shared, tmp_path, 8127) as port:
        with anyio.fail_after(PATIENCE):
            async with await anyio.connect_tcp("127.0.0.1", port) as connection:
                async for piece in connection:
                    got.update(piece)
                    length += len(piece)
    assert (length, got.digest()) == (size, hashlib.sha256(bytes(size)).digest())


async def test_a_client_that_does_not_read_blocks_only_its_own_connection(
    shared: Place, guest: Guest, tmp_path: Path
) -> None:
    answer = "read -r w; [ $w = lots ] && exec yes; echo $w"
    async with served(guest, 8128, answer), opened(shared, tmp_path, 8128) as port:
        with anyio.fail_after(PATIENCE), socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.sendall(b"lots\n")
            await anyio.sleep(1)
            assert await ask(port, b"little\n") == b"little\n"
    left = "n=0; for c in /proc/[0-9]*/cmdline; do [[ $(tr '\\0' ' ' <$c) == *FD:3[,]shut* ]] && ((n++)); done; echo $n"
    with anyio.fail_after(PATIENCE):
        while (await guest.run(Command(shell=left))).stdout != b"0\n":  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_a_client_that_still_sends_sees_the_server_end(shared: Place, guest: Guest, tmp_path: Path) -> None:
    # Only a connection with two programs can end in one direction.
    both = ("socat", "-t", "1000", "TCP4-LISTEN:8129,reuseaddr", "EXEC:echo bye!!CREATE:/tmp/heard")
    await Detached().start(guest, ProcessSpec(name="both", command=Command(argv=both)))
    with anyio.fail_after(PATIENCE):
        while b":1FC1 " not in (await guest.run(Command(shell="cat /proc/net/tcp"))).stdout:  # noqa: ASYNC110
            await anyio.sleep(0.05)
        async with opened(shared, tmp_path, 8129) as port, await anyio.connect_tcp("127.0.0.1", port) as connection:
            assert await connection.receive() == b"bye\n"
            with pytest.raises(anyio.EndOfStream):
                await connection.receive()
            await connection.send(b"still said")
            while await guest.read("/tmp/heard") != b"still said":  # noqa: ASYNC110
                await anyio.sleep(0.05)
    await Detached().stop(guest, "both", grace=0)


class _Poor(socket.socket):
    """A socket of a process that has no descriptor left for a moment."""

    refused = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refused < 2:
            self.refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


async def test_a_connection_that_cannot_be_accepted_is_accepted_later(
    shared: Place, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiveyard.engine.access.forwarding.ACCEPT_RETRY_DELAY", 0.01)
    held = await HostPorts(tmp_path / "ports").reserve(Owner("s", "a session"))
    poor = _Poor(fileno=held.socket.detach())
    async with served(guest, 8130, "wc -c"), anyio.create_task_group() as group:
        group.start_soon(relay, ReservedPort(held.port, poor), shared.guest, connect_command(8130))
        with anyio.fail_after(PATIENCE):
            assert await ask(held.port, b"123") == b"3\n"
        group.cancel_scope.cancel()
    poor.close()
    assert poor.refused == 2


async def test_connections_over_the_limit_wait(
    shared: Place, guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiveyard.engine.access.forwarding.MAX_CONNECTIONS", 2)
    async with served(guest, 8131, "cat"), opened(shared, tmp_path, 8131) as port:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(ask, port, b"word")


@pytest.mark.parametrize("port", [0, 65536, -5])
def test_an_invalid_port_number_is_refused(port: int) -> None:
    with pytest.raises(BadInput, match="not a port"):
        connect_command(port)
