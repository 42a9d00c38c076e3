"""The turns of a session: those that wait, and the one that runs. This module only decides; the caller journals."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hiveyard.core.errors import AgentFailed, Cancelled
from hiveyard.core.events import (
    AgentEnded,
    AgentStarted,
    AnyBody,
    Failure,
    Outcome,
    TurnCreated,
    TurnEnded,
    TurnStarted,
)
from hiveyard.core.states import TurnState
from hiveyard.engine.event_log import Entry
from hiveyard.store.views import TurnRow

INTERRUPTED = "interrupted"
"""The reason in an agent's end event after a user's interrupt."""


class TurnEntry(NamedTuple):
    """An entry and its turn."""

    turn: int | None
    entry: Entry


class TurnQueue:
    """The running turn and the waiting ones. `ended` is the number of the last turn that ended, 0 before the first; a
    prompt that a user typed may end before a waiting turn with a lower number. `conversation` is the agent's id of its
    conversation."""

    def __init__(self, agent: str, rows: Sequence[TurnRow], conversation: str | None) -> None:
        self._agent = agent
        self._last = max((row.number for row in rows), default=0)
        self.running = next((row.number for row in rows if row.state is TurnState.RUNNING), None)
        self._waiting = deque(row.number for row in rows if row.state is TurnState.PENDING)
        over = [(row.ended_at or 0.0, row.number) for row in rows if row.state is TurnState.ENDED]
        self.ended = max(over, default=(0.0, 0))[1]
        self.conversation = conversation

    @property
    def last(self) -> int:
        """The number of the newest turn; 0 before the first."""
        return self._last

    @property
    def waiting(self) -> tuple[int, ...]:
        """The turns whose prompts were not taken yet, in order."""
        return tuple(self._waiting)

    @property
    def next(self) -> int | None:
        """The turn whose prompt is to be sent now: the first waiting one, if no turn runs."""
        return self._waiting[0] if self._waiting and self.running is None else None

    def add(self, model: str) -> tuple[int, TurnCreated]:
        """Add a waiting turn; return its number and event."""
        self._last += 1
        self._waiting.append(self._last)
        return self._last, TurnCreated(agent=self._agent, model=model)

    def withdraw(self, number: int) -> None:
        """Take back a new turn that could not be journaled."""
        if number in self._waiting:
            self._waiting.remove(number)
        if number == self._last:
            self._last -= 1

    def start(self, number: int) -> TurnEntry:
        """Start a waiting turn: its prompt was taken, or is sent now."""
        self._waiting.remove(number)
        self.running = number
        return TurnEntry(number, Entry(TurnStarted(agent=self._agent)))

    def reject(self, number: int, failure: Failure) -> TurnEnded:
        """End a waiting turn whose prompt was not taken; return the event."""
        self._waiting.remove(number)
        self.ended = number
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)

    def abort(self, failure: Failure | None) -> list[tuple[int, AnyBody]]:
        """End the running turn; `failure` None means that a user asked for it."""
        if self.running is None:
            return []
        outcome: Outcome = "failed" if failure else "cancelled"
        end = TurnEnded(outcome=outcome, failure=failure, conversation=self.conversation)
        ended = self._finish(self.running, end)
        return [(self.ended, ended.entry.body)]

    def assign(self, entries: Sequence[Entry]) -> list[TurnEntry]:
        """Return the entries with their turns, and the events of turns that end."""
        return [placed for entry in entries for placed in self._assign(entry)]

    def _assign(self, entry: Entry) -> Iterator[TurnEntry]:
        body = entry.body
        if isinstance(body, AgentStarted) and body.conversation:
            self.conversation = body.conversation
        yield TurnEntry(self.running or self._last or None, entry)
        if isinstance(body, AgentEnded) and self.running is not None:
            yield self._finish(self.running, self._end(body))

    def _finish(self, number: int, end: TurnEnded) -> TurnEntry:
        self.ended, self.running = number, None
        return TurnEntry(number, Entry(end))

    def _end(self, body: AgentEnded) -> TurnEnded:
        if not body.is_error:
            return TurnEnded(outcome="succeeded", conversation=self.conversation)
        if body.reason == INTERRUPTED:
            failure = Failure(code=Cancelled.code, message="the turn was interrupted")
            return TurnEnded(outcome="cancelled", failure=failure, conversation=self.conversation)
        message = body.text or body.reason or "the agent reported a failure"
        failure = Failure(code=body.code or AgentFailed.code, message=message, hint="hv logs shows its output")
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)
