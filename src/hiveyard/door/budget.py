"""The money of one session: who may spend it, and when it is gone.

A request is let through while what was spent, and what the requests on their way are expected to cost, stays below
the limit. One that does not fit next to others waits for them and then fits or is refused. So what is overspent is at
most the cost of the requests on their way above their estimates: one request when they come one after the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from hiveyard.core.errors import BudgetSpent
from hiveyard.core.usage import Usage


class Budget:
    """`limit` in US dollars, None for none. `spent` is all that this session has used so far."""

    def __init__(self, limit: float | None, spent: Usage) -> None:
        self.limit = limit
        self.spent = spent
        self._expected: list[float] = []
        self._changed = anyio.Condition()

    @property
    def dollars(self) -> float:
        return self.spent.cost_usd or 0.0

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.dollars >= self.limit

    @asynccontextmanager
    async def admitted(self, estimate: float) -> AsyncIterator[None]:
        """Let a request through that will cost about `estimate` dollars. Raises BudgetSpent."""
        async with self._changed:
            while not self.exhausted and self._crowded():
                await self._changed.wait()
            self.check()
            self._expected.append(estimate)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                async with self._changed:
                    self._expected.remove(estimate)
                    self._changed.notify_all()

    async def allow(self, limit: float | None) -> None:
        """Another limit, also for requests that wait for money."""
        async with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def check(self) -> None:
        """Raises BudgetSpent when there is no money left."""
        if self.exhausted:
            raise BudgetSpent(
                f"the budget of ${self.limit:.2f} for this session is spent: its requests to models cost"
                f" ${self.dollars:.4f}. Stop here; nothing more can be asked.",
            )

    def add(self, usage: Usage) -> None:
        self.spent = self.spent + usage

    def _crowded(self) -> bool:
        if self.limit is None or not self._expected:
            return False
        return self.dollars + sum(self._expected) >= self.limit
