"""Machines whose time comes to an end, where their backend does not see to it itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from hiveyard.core.errors import BadInput
from hiveyard.core.machines import Machine, TtlAction
from hiveyard.kit.clock import Clock
from hiveyard.kit.group import together


class Lifetimes:
    """Calls `end` with a machine when its time is over, for as long as the block lasts."""

    def __init__(self, clock: Clock, end: Callable[[str, TtlAction], Awaitable[None]]) -> None:
        self._clock = clock
        self._end = end
        self._running: dict[str, anyio.CancelScope] = {}
        self._group: TaskGroup | None = None
        self._open = AsyncExitStack()

    async def __aenter__(self) -> None:
        self._group = await self._open.enter_async_context(together())

    async def __aexit__(self, *raised: object) -> None:
        assert self._group is not None
        self._group.cancel_scope.cancel()
        self._group = None
        await self._open.aclose()

    def check(self) -> None:
        """Raises BadInput where nobody would see to it that a time ends."""
        if self._group is None:
            raise BadInput(
                "this provider ends no machine by itself, and the orchestrator is not open to do it",
                hint="async with Orchestrator(...) as orchestrator: ..., or leave ttl_seconds away",
            )

    def begin(self, machine: Machine, seconds: float, action: TtlAction) -> Machine:
        """From now on; gives the machine with its end. It has one time at most."""
        self.check()
        assert self._group is not None
        scope = self._running[machine.name] = anyio.CancelScope()
        self._group.start_soon(self._wait, scope, machine.name, seconds, action, name=f"lifetime of {machine.name}")
        return replace(machine, ends_at=self._clock.now() + seconds, ttl_action=action)

    def forget(self, machine: str) -> None:
        """It is gone, or its end is somebody else's. Without one: a success."""
        if scope := self._running.pop(machine, None):
            scope.cancel()

    async def _wait(self, scope: anyio.CancelScope, machine: str, seconds: float, action: TtlAction) -> None:
        with scope:
            await self._clock.sleep(seconds)
            # From here on it is at work, and not to be cancelled by what it does itself.
            self._running.pop(machine, None)
            with anyio.CancelScope(shield=True):
                await self._end(machine, action)
