"""Record the events of one door: calls with their price, failures, refusals, and the spent budget.

The rate of events that a guest can provoke is limited. Nothing is lost if a guest closes its connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import reduce
from operator import add
from typing import Literal

import anyio
import msgspec

from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import (
    BudgetExhausted,
    DoorEvent,
    DoorRefused,
    Failure,
    ModelCalled,
    ModelFailed,
    Notice,
)
from hiveyard.core.usage import Usage
from hiveyard.door.budget import Budget
from hiveyard.door.meter import Part
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.prices import Prices
from hiveyard.door.quota import EventQuota
from hiveyard.kit.clock import Clock
from hiveyard.kit.text import one_line

Record = Callable[[str, int | None, DoorEvent | Notice], Awaitable[None]]
"""Record an event of a session and turn in the journal. It is durable on return."""

_ENTRY_SECONDS = 30.0


class UsageRecorder:
    """The recorder of one session's door. `turn` is the current turn, set by its runner."""

    def __init__(
        self,
        session: str,
        record: Record,
        *,
        budget: Budget,
        prices: Prices,
        on_budget: Callable[[], None],
        clock: Clock,
        turn: int | None = None,
    ) -> None:
        self.turn = turn
        self.budget = budget
        self.clock = clock
        self._session = session
        self._record = record
        self._prices = prices
        self._on_budget = on_budget
        self._unpriced: set[str] = set()
        self._exhausted = False
        self._last_failure: tuple[int | None, Failure] | None = None
        self._refusals = EventQuota(clock)
        self._failures = EventQuota(clock)

    def estimate(self, asked: ModelRequest) -> float:
        """Estimate the cost of a request in dollars: all of it as uncached input, and a typical answer."""
        if self.budget.limit is None or not asked.route.protocol:
            return 0.0
        usage = Usage(input_tokens=asked.tokens, output_tokens=min(asked.most_output or 4096, 4096))
        return self._prices.cost(asked.route.vendor, asked.model, usage) or 0.0

    async def called(
        self,
        asked: ModelRequest,
        parts: Sequence[Part],
        *,
        turn: int | None,
        status: int,
        seconds: float,
        complete: bool,
        source: Literal["upstream", "tape"],
    ) -> None:
        """Record an answer with its price. The first of `parts` is the model that answered.

        The cost is added to the budget; that the budget is spent is recorded once."""
        priced = [self._priced(asked, part) for part in parts]
        usage = reduce(add, priced)
        self.budget.add(usage)
        await self._write(
            turn,
            ModelCalled(
                protocol=asked.route.protocol,
                model=one_line(parts[0].model),
                status=status,
                seconds=round(seconds, 4),
                usage=usage,
                complete=complete,
                source=source,
            ),
        )
        for part, one in zip(parts, priced, strict=True):
            if one.cost_usd is None:
                await self._unpriced_model(turn, one_line(part.model))
        if self.budget.exhausted:
            await self.exhausted(turn)

    def _priced(self, asked: ModelRequest, part: Part) -> Usage:
        cost = self._prices.cost(asked.route.vendor, part.model, part.usage, part.extra)
        return msgspec.structs.replace(part.usage, cost_usd=cost)

    async def failed(self, protocol: str, error: HiveyardError, *, turn: int | None, status: int = 0) -> None:
        """Record a request without a useful answer. A lasting failure is recorded once, not for each request."""
        failure = Failure(code=error.code, message=error.message, hint=error.hint)
        latest = (turn, failure)
        if (error.retry or latest != self._last_failure) and self._failures.take():
            self._last_failure = latest
            if note := self._failures.note_skipped():
                failure = msgspec.structs.replace(failure, message=failure.message + note)
            await self._write(turn, ModelFailed(protocol=protocol, failure=failure, status=status))

    async def refused(self, what: str, reason: str) -> None:
        """Record a refused request."""
        if self._refusals.take():
            reason += self._refusals.note_skipped()
            await self._write(self.turn, DoorRefused(what=one_line(what), reason=reason))

    async def exhausted(self, turn: int | None) -> None:
        """Record that the budget is spent, once in the lifetime of this door. Call `on_budget` each time."""
        if not self._exhausted and self.budget.limit is not None:
            self._exhausted = True
            await self._write(turn, BudgetExhausted(budget_usd=self.budget.limit, spent_usd=self.budget.dollars))
        self._on_budget()

    async def notice(self, turn: int | None, code: str, message: str) -> None:
        await self._write(turn, Notice(code=code, message=message))

    async def _unpriced_model(self, turn: int | None, model: str) -> None:
        if model in self._unpriced or len(self._unpriced) >= 20:
            return
        self._unpriced.add(model)
        more = "" if self.budget.limit is None else "; the budget counts it as free"
        await self.notice(turn, "door.no_price", f"the price of {model or 'this model'} is not known{more}")

    async def _write(self, turn: int | None, event: DoorEvent | Notice) -> None:
        """Write an event. Shielded: usage is recorded even if the guest has closed its connection."""
        with anyio.CancelScope(shield=True), anyio.fail_after(_ENTRY_SECONDS):
            await self._record(self._session, turn, event)
