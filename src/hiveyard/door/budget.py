"""Enforce the budget of one session.

A request is admitted while the money spent, plus the expected cost of the running requests, is below the limit. One
that does not fit waits for the running requests, and is then admitted or refused. So the budget is exceeded by at most
what the running requests cost above their estimates: by one request, if they run one after the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from hiveyard.core.errors import BudgetSpent
from hiveyard.core.usage import Usage


class Budget:
    """A budget. `limit` is in US dollars, None for no limit. `spent` is the session's usage so far."""

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
        """Admit a request that will cost about `estimate` dollars. Raises BudgetSpent."""
        async with self._changed:
            while not self.exhausted and self._must_wait():
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
        """Set another limit, also for the requests that wait."""
        async with self._changed:
            self.limit = limit
            self._changed.notify_all()

    def check(self) -> None:
        """Raise BudgetSpent if the budget is spent."""
        if self.exhausted:
            raise BudgetSpent(
                f"the budget of ${self.limit:.2f} for this session is spent: its requests to models cost"
                f" ${self.dollars:.4f}. Stop here; no further request is answered.",
            )

    def add(self, usage: Usage) -> None:
        self.spent = self.spent + usage

    def _must_wait(self) -> bool:
        if self.limit is None or not self._expected:
            return False
        return self.dollars + sum(self._expected) >= self.limit
