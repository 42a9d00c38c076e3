"""Keep the connections of this process to its machines.

A machine that this process started has its serial port, as long as one command at a time is enough. Every machine has
one ssh connection, which is made when it is first needed, and again when it was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import asyncssh

from hiveyard.core.errors import GuestDisconnected, MachineLost
from hiveyard.machines.qemu.record import Record
from hiveyard.machines.qemu.serial_shell import SerialCommand, SerialShell
from hiveyard.machines.qemu.ssh import Channel, Link, connect

_CONNECT_TIMEOUT = 60.0
_PAUSE = 0.2


class Connections:
    """Connections by the machine's name. A machine that was made again under its name gets a new connection."""

    def __init__(self) -> None:
        self._shells: dict[str, SerialShell] = {}
        self._links: dict[str, Link] = {}
        self._locks: dict[str, anyio.Lock] = {}

    def add(self, name: str, shell: SerialShell) -> None:
        self._shells[name] = shell

    def available(self, record: Record) -> SerialShell | Link | None:
        """Return a connection that can run a command at once."""
        link, shell = self._links.get(record.name), self._shells.get(record.name)
        if link is not None and link.vm == record.vm and link.open:
            return link
        return shell if shell is not None and shell.vm == record.vm and shell.free else None

    async def link(self, record: Record) -> Link:
        """Return an open ssh connection to the machine of `record`. Raises MachineLost."""
        assert record.vm is not None
        async with self._locks.setdefault(record.name, anyio.Lock()):
            link = self._links.get(record.name)
            if link is not None and link.vm == record.vm and link.open:
                return link
            await self._close_link(record.name)
            if not record.vm.alive:
                raise MachineLost(f"machine {record.name} is gone: its QEMU process has ended", machine=record.name)
            self._links[record.name] = link = await _connected(record)
            return link

    async def drop(self, name: str) -> None:
        await self._close_link(name)
        if shell := self._shells.pop(name, None):
            await shell.aclose()
        self._locks.pop(name, None)

    async def aclose(self) -> None:
        for name in {*self._links, *self._shells}:
            await self.drop(name)

    async def _close_link(self, name: str) -> None:
        if link := self._links.pop(name, None):
            await link.close()


class GuestExec:
    """The Exec of one machine."""

    def __init__(self, connections: Connections, record: Record) -> None:
        self._connections = connections
        self._record = record

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Channel | SerialCommand]:
        connection = self._connections.available(self._record) or await self._connections.link(self._record)
        async with connection.run(argv) as stream:
            yield stream


async def _connected(record: Record) -> Link:
    assert record.vm is not None
    key = asyncssh.import_private_key(record.key)
    try:
        with anyio.fail_after(_CONNECT_TIMEOUT):
            while True:
                # A guest that is short of memory or processes may need several attempts.
                with contextlib.suppress(GuestDisconnected):
                    return await connect(
                        record.name,
                        record.vm,
                        record.port,
                        pids=record.shape.pids,
                        key=key,
                        host_key=record.host_key,
                        key_accepted=_at_once,
                    )
                await anyio.sleep(_PAUSE)
    except TimeoutError:
        raise MachineLost(
            f"machine {record.name} accepted no ssh connection within {_CONNECT_TIMEOUT:.0f}s", machine=record.name
        ) from None


async def _at_once() -> None:
    """Return at once: a ready machine accepts its key."""
