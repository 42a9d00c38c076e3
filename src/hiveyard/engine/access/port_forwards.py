"""Forwarded ports of one session's machine: its ssh port, and host ports that lead to ports of the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup, TaskStatus

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Provider
from hiveyard.engine.access.forwarding import connect_command, relay
from hiveyard.engine.access.host_ports import HostPorts, Owner, ReservedPort
from hiveyard.engine.access.ssh_keys import Keys
from hiveyard.engine.access.ssh_server import serve_ssh
from hiveyard.engine.settings import PortSettings

SSH = 22
"""The number that stands for ssh among the guest's ports, whether or not a program listens there."""
_FIRST_UNPRIVILEGED = 1024
"""Only root can use lower ports: for these the same number on the host is not tried."""


class _Forward(NamedTuple):
    held: ReservedPort
    scope: anyio.CancelScope
    closed: anyio.Event


class PortForwards:
    """The ports that are open now, by the guest's port. Made by `port_forwards`."""

    def __init__(
        self, group: TaskGroup, owner: Owner, provider: Provider, machine: str, ports: HostPorts, keys: Keys
    ) -> None:
        self._group = group
        self._owner = owner
        self._provider = provider
        self._machine = machine
        self._ports = ports
        self._keys = keys
        self._open: dict[int, _Forward] = {}
        self._changing = anyio.Lock()

    @property
    def opened(self) -> dict[int, int]:
        """Return the host port for each open guest port."""
        return {guest: forward.held.port for guest, forward in self._open.items()}

    async def open_ssh(
        self,
        settings: PortSettings,
        *,
        wanted: int | None = None,
        previous: int | None = None,
        avoid: Collection[int] = (),
    ) -> int:
        """Serve ssh and return the host port: `wanted`, otherwise `previous`, otherwise a free one of the settings'
        range, one in `avoid` only if no other is free. Raises PortTaken, NoFreePort."""
        among = range(settings.first, settings.last + 1)
        preferred = () if previous is None else (previous,)

        async def reserve() -> ReservedPort:
            return await self._ports.reserve(self._owner, wanted=wanted, preferred=preferred, among=among, avoid=avoid)

        async def serve(held: ReservedPort) -> None:
            async with serve_ssh(held, self._provider, self._machine, self._keys):
                await anyio.sleep_forever()

        return await self._start(SSH, reserve, serve)

    async def open(self, guest_port: int, *, wanted: int | None = None, previous: int | None = None) -> int:
        """Forward a host port to a port of the guest and return it: `wanted`, otherwise `previous`, otherwise the same
        number, otherwise any. A port that is already open stays, unless another one is wanted. Raises PortTaken,
        NoFreePort, BadInput."""
        _check_own(guest_port)
        command = connect_command(guest_port)
        preferred = [port for port in (previous, guest_port) if port is not None and port >= _FIRST_UNPRIVILEGED]

        async def reserve() -> ReservedPort:
            return await self._ports.reserve(self._owner, wanted=wanted, preferred=preferred)

        async def serve(held: ReservedPort) -> None:
            await relay(held, lambda: self._provider.guest(self._machine), command)

        return await self._start(guest_port, reserve, serve, wanted=wanted)

    async def close(self, guest_port: int) -> None:
        """Close a port and all its connections; succeeds if it is not open. Raises BadInput for the ssh port."""
        _check_own(guest_port)
        async with self._changing:
            await self._stop(guest_port)

    async def _stop(self, guest_port: int) -> None:
        forward = self._open.get(guest_port)
        if forward is not None:
            forward.scope.cancel()
            await forward.closed.wait()

    async def _start(
        self,
        guest: int,
        reserve: Callable[[], Awaitable[ReservedPort]],
        serve: Callable[[ReservedPort], Awaitable[None]],
        *,
        wanted: int | None = None,
    ) -> int:
        async with self._changing:
            if guest not in self._open or wanted not in (None, self._open[guest].held.port):
                held = await reserve()
                await self._stop(guest)
                await self._group.start(self._serve, guest, held, serve)
            return self._open[guest].held.port

    async def _serve(
        self,
        guest: int,
        held: ReservedPort,
        serve: Callable[[ReservedPort], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        with anyio.CancelScope() as scope:
            forward = self._open[guest] = _Forward(held, scope, anyio.Event())
            task_status.started()
            try:
                await serve(held)
            finally:
                if self._open.get(guest) is forward:
                    del self._open[guest]
                with anyio.CancelScope(shield=True):
                    await self._ports.release(held)
                forward.closed.set()


@asynccontextmanager
async def port_forwards(
    owner: Owner, provider: Provider, machine: str, ports: HostPorts, keys: Keys
) -> AsyncIterator[PortForwards]:
    """Yield the port forwards of a machine; all are closed at the end of the block."""
    async with anyio.create_task_group() as group:
        yield PortForwards(group, owner, provider, machine, ports, keys)
        group.cancel_scope.cancel()


def _check_own(guest_port: int) -> None:
    if guest_port == SSH:
        raise BadInput(f"{SSH} is the ssh port, which is open for as long as the session runs", hint="hv ssh-config ID")
