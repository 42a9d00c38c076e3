"""The ways this process has into its machines: the port of those it made itself, as long as one command at a time is
enough, and one ssh connection each, made when first needed and made again when lost."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import asyncssh

from hiveyard.core.errors import GuestDisconnected, MachineLost
from hiveyard.machines.qemu.record import Record
from hiveyard.machines.qemu.serial_shell import SerialShell, Spoken
from hiveyard.machines.qemu.ssh import Channel, Link, connect

_PATIENCE = 60.0
_PAUSE = 0.2


class Entries:
    """Links by the machine's name. A machine that was made again under its name gets a link of its own."""

    def __init__(self) -> None:
        self._early: dict[str, SerialShell] = {}
        self._links: dict[str, Link] = {}
        self._locks: dict[str, anyio.Lock] = {}

    def add(self, name: str, early: SerialShell) -> None:
        self._early[name] = early

    def way(self, record: Record) -> SerialShell | Link | None:
        """Return the way in that can run a command at once."""
        link, early = self._links.get(record.name), self._early.get(record.name)
        if link is not None and link.vm == record.vm and link.open:
            return link
        return early if early is not None and early.vm == record.vm and early.free else None

    async def link(self, record: Record) -> Link:
        """An open link to the machine of `record`. Raises MachineLost."""
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
        if early := self._early.pop(name, None):
            await early.aclose()
        self._locks.pop(name, None)

    async def aclose(self) -> None:
        for name in {*self._links, *self._early}:
            await self.drop(name)

    async def _close_link(self, name: str) -> None:
        if link := self._links.pop(name, None):
            await link.close()


class GuestExec:
    """Programs in one machine; an Exec."""

    def __init__(self, entries: Entries, record: Record) -> None:
        self._entries = entries
        self._record = record

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Channel | Spoken]:
        way = self._entries.way(self._record) or await self._entries.link(self._record)
        async with way.run(argv) as stream:
            yield stream


async def _connected(record: Record) -> Link:
    assert record.vm is not None
    key = asyncssh.import_private_key(record.key)
    try:
        with anyio.fail_after(_PATIENCE):
            while True:
                # A guest that is full to the brim may need several attempts to let one more in.
                with contextlib.suppress(GuestDisconnected):
                    return await connect(
                        record.name,
                        record.vm,
                        record.port,
                        pids=record.shape.pids,
                        key=key,
                        host_key=record.host_key,
                        permitted=_at_once,
                    )
                await anyio.sleep(_PAUSE)
    except TimeoutError:
        raise MachineLost(
            f"machine {record.name} did not let us in within {_PATIENCE:.0f}s", machine=record.name
        ) from None


async def _at_once() -> None:
    """A machine that is ready knows its key."""
