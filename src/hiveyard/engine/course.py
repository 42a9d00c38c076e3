"""The turns of a session, told by its feed: whoever typed, a prompt begins a turn and the agent's last word ends it.
It only decides; the caller journals."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hiveyard.core.errors import AgentFailed, Cancelled
from hiveyard.core.events import (
    AgentEnded,
    AgentPrompted,
    AgentStarted,
    AnyBody,
    Failure,
    Outcome,
    TurnCreated,
    TurnEnded,
    TurnStarted,
)
from hiveyard.core.states import TurnState
from hiveyard.engine.ledger import Entry
from hiveyard.store.views import TurnRow

INTERRUPTED = "interrupted"
"""The reason an agent gives for an end that a person asked for."""


class Placed(NamedTuple):
    """An entry, with the turn it belongs to."""

    turn: int | None
    entry: Entry


class Course:
    """Which turn is at work, and which wait. `conversation` is the agent's own name of what it remembers."""

    def __init__(self, agent: str, rows: Sequence[TurnRow], conversation: str | None) -> None:
        self._agent = agent
        self._last = max((row.number for row in rows), default=0)
        self.running = next((row.number for row in rows if row.state is TurnState.RUNNING), None)
        self._waiting = deque(row.number for row in rows if row.state is TurnState.PENDING)
        self.conversation = conversation

    @property
    def last(self) -> int:
        """The number of the newest turn; 0 before the first."""
        return self._last

    @property
    def ended(self) -> int:
        """The number of the last turn that has ended."""
        return (self.running or (self._waiting[0] if self._waiting else self._last + 1)) - 1

    @property
    def next(self) -> int | None:
        """The turn whose prompt is to be said now: the first that waits, when none is at work."""
        return self._waiting[0] if self._waiting and self.running is None else None

    def added(self, model: str) -> tuple[int, TurnCreated]:
        """A new turn that waits."""
        self._last += 1
        self._waiting.append(self._last)
        return self._last, TurnCreated(agent=self._agent, model=model)

    def withdrawn(self, number: int) -> None:
        """Take back a new turn that could not be journaled."""
        if number in self._waiting:
            self._waiting.remove(number)
        if number == self._last:
            self._last -= 1

    def placed(self, entries: Sequence[Entry]) -> list[Placed]:
        """The entries, with the moves of turns that follow from them."""
        return [placed for entry in entries for placed in self._place(entry)]

    def cut(self, failure: Failure | None) -> list[tuple[int, AnyBody]]:
        """End the turn at work, from outside; None: a person wanted it."""
        if self.running is None:
            return []
        number, self.running = self.running, None
        outcome: Outcome = "failed" if failure else "cancelled"
        return [(number, TurnEnded(outcome=outcome, failure=failure, conversation=self.conversation))]

    def refused(self, number: int, failure: Failure) -> TurnEnded:
        """The end of a waiting turn whose prompt was not taken."""
        self._waiting.remove(number)
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)

    def _place(self, entry: Entry) -> Iterator[Placed]:
        body = entry.body
        if isinstance(body, AgentStarted) and body.conversation:
            self.conversation = body.conversation
        if isinstance(body, AgentPrompted):
            yield from self._begun()
        yield Placed(self.running or self._last or None, entry)
        if isinstance(body, AgentEnded) and self.running is not None:
            yield Placed(self.running, Entry(self._end(body)))
            self.running = None

    def _begun(self) -> Iterator[Placed]:
        """A prompt was taken. While a turn is at work the agent takes it into that one, as its programs do."""
        if self.running is not None:
            return
        if self._waiting:
            self.running = self._waiting.popleft()
        else:
            self._last += 1
            self.running = self._last
        yield Placed(self.running, Entry(TurnStarted(agent=self._agent)))

    def _end(self, body: AgentEnded) -> TurnEnded:
        if not body.is_error:
            return TurnEnded(outcome="succeeded", conversation=self.conversation)
        if body.reason == INTERRUPTED:
            failure = Failure(code=Cancelled.code, message="the turn was interrupted")
            return TurnEnded(outcome="cancelled", failure=failure, conversation=self.conversation)
        message = body.text or body.reason or "the agent says that it failed"
        failure = Failure(code=AgentFailed.code, message=message, hint="hv logs shows what it said")
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)
