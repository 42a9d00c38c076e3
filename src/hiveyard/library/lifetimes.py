"""Time limits of machines whose backend does not enforce them."""

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
    """Calls `on_end` with a machine when its time is over, while the block runs."""

    def __init__(self, clock: Clock, on_end: Callable[[str, TtlAction], Awaitable[None]]) -> None:
        self._clock = clock
        self._on_end = on_end
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
        """Raise BadInput if this object is not open and could not enforce a time limit."""
        if self._group is None:
            raise BadInput(
                "this provider does not enforce a time to live, and the orchestrator is not open to do it",
                hint="async with Orchestrator(...) as orchestrator: ..., or omit ttl_seconds",
            )

    def start(self, machine: Machine, seconds: float, action: TtlAction) -> Machine:
        """Start a machine's time limit and return the machine with its end. A machine has at most one limit."""
        self.check()
        assert self._group is not None
        scope = self._running[machine.name] = anyio.CancelScope()
        self._group.start_soon(self._wait, scope, machine.name, seconds, action, name=f"lifetime of {machine.name}")
        return replace(machine, ends_at=self._clock.now() + seconds, ttl_action=action)

    def cancel(self, machine: str) -> None:
        """Cancel a machine's time limit. A machine without one is a success."""
        if scope := self._running.pop(machine, None):
            scope.cancel()

    async def _wait(self, scope: anyio.CancelScope, machine: str, seconds: float, action: TtlAction) -> None:
        with scope:
            await self._clock.sleep(seconds)
            # The action calls `cancel` for this machine, and must not cancel itself.
            self._running.pop(machine, None)
            with anyio.CancelScope(shield=True):
                await self._on_end(machine, action)
