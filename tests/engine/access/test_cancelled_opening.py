"""A port that is closed while it opens releases all its resources."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from hiveyard.engine.access.host_ports import HostPorts, Owner, ReservedPort
from hiveyard.engine.access.ssh_keys import SshKeys
from hiveyard.engine.access.ssh_server import serve_ssh
from hiveyard.machines.bubblewrap import BubblewrapProvider

pytestmark = pytest.mark.anyio


async def heard_by_the_loop(held: ReservedPort) -> None:
    """Return as soon as the event loop listens on the socket."""
    known = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    while held.socket.fileno() not in known:
        await anyio.lowlevel.checkpoint()


async def test_cancelling_a_starting_ssh_server_leaves_no_descriptor_in_the_event_loop(tmp_path: Path) -> None:
    ports = HostPorts(tmp_path / "ports")
    held = await ports.reserve(Owner("s1", "anna"))
    number = held.socket.fileno()
    provider = BubblewrapProvider(tmp_path / "state", tmp_path / "cache")
    async with anyio.create_task_group() as group:

        async def serve() -> None:
            async with serve_ssh(held, provider, "anna", SshKeys(tmp_path / "keys").of("s1")):
                await anyio.sleep_forever()

        group.start_soon(serve)
        with anyio.fail_after(20):
            await heard_by_the_loop(held)
        group.cancel_scope.cancel()
    await ports.release(held)
    one, other = socket.socketpair()
    with one, other:
        assert number in (one.fileno(), other.fileno())
        listener, speaker = (one, other) if one.fileno() == number else (other, one)
        speaker.send(b"x")
        with anyio.fail_after(20):
            await anyio.wait_readable(listener)
