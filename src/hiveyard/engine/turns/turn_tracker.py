"""The turns of a session, told by its feed: whoever typed, a prompt begins a turn and the agent's last word ends it.
It only decides; the caller journals."""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
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
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.core.states import TurnState
from hiveyard.engine.event_log import Entry
from hiveyard.store.views import TurnRow

INTERRUPTED = "interrupted"
"""The reason an agent gives for an end that a person asked for."""


class Placed(NamedTuple):
    """An entry, with the turn it belongs to."""

    turn: int | None
    entry: Entry


class Wording:
    """What is left of a prompt's text when a program has taken it and its feed has told it: that drops white space at
    the ends, characters that nobody sees and what is too long."""

    def __init__(self, text: str) -> None:
        self._essence = _essence(text[: 2 * TEXT_LIMIT])

    def is_of(self, heard: str) -> bool:
        if len(heard) > TEXT_LIMIT:  # clipped
            return self._essence.startswith(_essence(heard[:TEXT_LIMIT]))
        return self._essence == _essence(heard)


class TurnTracker:
    """Which turn is at work, and which wait. `ended` is the number of the last that has ended, 0 before the first: one
    that a person typed comes to its end before one with a lower number that waits. `conversation` is the agent's own
    name of what it remembers."""

    def __init__(self, agent: str, rows: Sequence[TurnRow], conversation: str | None) -> None:
        self._agent = agent
        self._last = max((row.number for row in rows), default=0)
        self.running = next((row.number for row in rows if row.state is TurnState.RUNNING), None)
        self._waiting = deque(row.number for row in rows if row.state is TurnState.PENDING)
        self._said: set[int] = set()
        over = [(row.ended_at or 0.0, row.number) for row in rows if row.state is TurnState.ENDED]
        self.ended = max(over, default=(0.0, 0))[1]
        self.conversation = conversation

    @property
    def last(self) -> int:
        """The number of the newest turn; 0 before the first."""
        return self._last

    @property
    def waiting(self) -> tuple[int, ...]:
        """The turns whose prompts were not taken yet, in their order."""
        return tuple(self._waiting)

    @property
    def next(self) -> int | None:
        """The turn whose prompt is to be said now: the first that waits, when it was not said and none is at work."""
        first = self._waiting[0] if self._waiting and self.running is None else None
        return None if first in self._said else first

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

    def said(self, number: int) -> None:
        """The program has the prompt of a turn; its feed may have told that or not."""
        self._said.add(number)

    def placed(self, entries: Sequence[Entry], wordings: Mapping[int, Wording]) -> list[Placed]:
        """The entries, with the moves of turns that follow from them. `wordings` are those of the turns that wait."""
        return [placed for entry in entries for placed in self._place(entry, wordings)]

    def cut(self, failure: Failure | None) -> list[tuple[int, AnyBody]]:
        """End the turn at work, from outside; None: a person wanted it."""
        if self.running is None:
            return []
        self.ended, self.running = self.running, None
        outcome: Outcome = "failed" if failure else "cancelled"
        return [(self.ended, TurnEnded(outcome=outcome, failure=failure, conversation=self.conversation))]

    def refused(self, number: int, failure: Failure) -> TurnEnded:
        """The end of a waiting turn whose prompt was not taken."""
        self._waiting.remove(number)
        self.ended = number
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)

    def _place(self, entry: Entry, wordings: Mapping[int, Wording]) -> Iterator[Placed]:
        body = entry.body
        if isinstance(body, AgentStarted) and body.conversation:
            self.conversation = body.conversation
        if isinstance(body, AgentPrompted):
            yield from self._begun(self._meant(body.text, wordings))
        yield Placed(self.running or self._last or None, entry)
        if isinstance(body, AgentEnded) and self.running is not None:
            yield self._over(self.running, self._end(body))

    def _meant(self, heard: str, wordings: Mapping[int, Wording]) -> int | None:
        """The turn that waited for a prompt that was taken; None: a person's own."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        if (wording := wordings.get(first)) is not None and wording.is_of(heard):
            return first
        # Other words are a person's, and come first when they were queued in the program. Only when it has ours for
        # certain these are ours, which it changed: else that turn would wait for ever, and be said twice. Taking a
        # person's for ours gives an answer to the wrong turn; while ours is unsaid, it would lose the prompt.
        return first if first in self._said and self.running is None else None

    def _begun(self, number: int | None) -> Iterator[Placed]:
        """A prompt was taken. While a turn is at work the agent takes a person's into that one, as its programs do.
        Ours, which came a moment after a person's, goes on with the work as its own turn: somebody waits for it."""
        if self.running is not None:
            if number is None:
                return
            yield self._over(self.running, TurnEnded(outcome="succeeded", conversation=self.conversation))
        if number is None:
            self._last = number = self._last + 1
        else:
            self._waiting.remove(number)
        self.running = number
        yield Placed(number, Entry(TurnStarted(agent=self._agent)))

    def _over(self, number: int, end: TurnEnded) -> Placed:
        self.ended, self.running = number, None
        return Placed(number, Entry(end))

    def _end(self, body: AgentEnded) -> TurnEnded:
        if not body.is_error:
            return TurnEnded(outcome="succeeded", conversation=self.conversation)
        if body.reason == INTERRUPTED:
            failure = Failure(code=Cancelled.code, message="the turn was interrupted")
            return TurnEnded(outcome="cancelled", failure=failure, conversation=self.conversation)
        message = body.text or body.reason or "the agent says that it failed"
        failure = Failure(code=AgentFailed.code, message=message, hint="hv logs shows what it said")
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)


def _essence(text: str) -> str:
    """As the seats in the guest compare texts (agents/inside); the blank is their guard before what looks like a
    command."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char not in "\u2800\ufffd")
