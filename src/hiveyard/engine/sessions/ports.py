"""Ports of a running session. Ports that were open before are opened again, on the same host ports where possible, and
changes are journaled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from hiveyard.core.errors import HiveyardError, StoreUnusable
from hiveyard.core.events import AnyBody, Notice, PortClosed, PortOpened
from hiveyard.core.ports import Provider
from hiveyard.core.states import Phase
from hiveyard.engine.access.host_ports import Owner
from hiveyard.engine.access.port_forwards import SSH, PortForwards, port_forwards
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.store import views
from hiveyard.store.views import SessionRow


class SessionPorts:
    """The open ports of one session; every change is journaled."""

    def __init__(self, session: SessionRow, port_forwards: PortForwards, resources: Resources) -> None:
        self._session = session
        self._forwards = port_forwards
        self._r = resources
        self._changing = anyio.Lock()

    async def restore(self, wanted: int | None) -> None:
        """Open the ssh port, on `wanted` the first time, and the ports that were open before, on other host ports if
        theirs are taken. Raises PortTaken, NoFreePort."""
        rows = await self._r.event_log.read(views.ports)
        mine = {row.guest_port: row.host_port for row in rows if row.session == self._session.id}
        others = {row.host_port for row in rows if row.session != self._session.id}
        first = wanted if self._session.base is None else None
        try:
            await self._forwards.open_ssh(self._r.ports, wanted=first, previous=mine.get(SSH, wanted), avoid=others)
            for guest, host in mine.items():
                if guest != SSH:
                    await self._forwards.open(guest, previous=host)
        finally:
            await self._journal(mine)

    async def open(self, guest: int, wanted: int | None) -> int:
        """Forward a host port to a port of the guest; return the host port. Raises PortTaken, NoFreePort, BadInput."""
        async with self._changing:
            before = self._forwards.opened
            port = await self._forwards.open(guest, wanted=wanted)
            await self._journal(before)
            return port

    async def close(self, guest: int) -> None:
        """Stop forwarding to a port of the guest; succeeds if it is not open."""
        async with self._changing:
            before = self._forwards.opened
            await self._forwards.close(guest)
            if guest in before:
                await self._r.event_log.record(self._session.id, PortClosed(host_port=before[guest]))

    async def _journal(self, before: dict[int, int]) -> None:
        """Record the ports that were opened, and the ones that they replace."""
        now = self._forwards.opened
        moved = {guest: host for guest, host in now.items() if before.get(guest) != host}
        closed: list[AnyBody] = [PortClosed(host_port=before[guest]) for guest in moved if guest in before]
        opened = [PortOpened(host_port=host, guest_port=guest) for guest, host in moved.items()]
        if opened:
            await self._r.event_log.record(self._session.id, *closed, *opened)


@asynccontextmanager
async def open_session_ports(
    session: SessionRow, provider: Provider, resources: Resources, *, wanted: int | None
) -> AsyncIterator[SessionPorts]:
    """Keep a session's ports open for as long as the block lasts. Raises PortTaken, NoFreePort for a session that is
    being started. A session that runs already does not end because a port is missing: a notice records it."""
    keys = await anyio.to_thread.run_sync(resources.ssh_keys.of, session.id)
    owner = Owner(session.id, session.slug)
    async with port_forwards(owner, provider, machine_name(session.id), resources.host_ports, keys) as opened:
        ports = SessionPorts(session, opened, resources)
        try:
            await ports.restore(wanted)
        except (HiveyardError, OSError) as error:
            if isinstance(error, StoreUnusable) or session.phase is not Phase.RUNNING:
                raise
            code = error.code if isinstance(error, HiveyardError) else ""
            message = f"not all of its ports could be opened again: {error}"
            await resources.event_log.record(session.id, Notice(message=message, code=code))
        yield ports
