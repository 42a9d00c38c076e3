"""Track the turns of a session by its feed: each prompt starts a turn, whoever typed it, and the agent's end event ends
it. This module only decides; the caller journals."""

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
"""The reason in an agent's end event after a user's interrupt."""


class TurnEntry(NamedTuple):
    """An entry and its turn."""

    turn: int | None
    entry: Entry


class PromptText:
    """A prompt's text in a form to compare with the feed, where white space at the ends, invisible characters and the
    end of a long text are missing."""

    def __init__(self, text: str) -> None:
        self._normalized = _normalized(text[: 2 * TEXT_LIMIT])

    def is_of(self, heard: str) -> bool:
        if len(heard) > TEXT_LIMIT:  # clipped
            return self._normalized.startswith(_normalized(heard[:TEXT_LIMIT]))
        return self._normalized == _normalized(heard)


class TurnTracker:
    """The running turn and the waiting ones. `ended` is the number of the last turn that ended, 0 before the first; a
    prompt that a user typed may end before a waiting turn with a lower number. `conversation` is the agent's id of its
    conversation."""

    def __init__(self, agent: str, rows: Sequence[TurnRow], conversation: str | None) -> None:
        self._agent = agent
        self._last = max((row.number for row in rows), default=0)
        self.running = next((row.number for row in rows if row.state is TurnState.RUNNING), None)
        self._waiting = deque(row.number for row in rows if row.state is TurnState.PENDING)
        self._sent: set[int] = set()
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
        """The turn whose prompt is to be sent now: the first waiting one, if it was not sent and no turn runs."""
        first = self._waiting[0] if self._waiting and self.running is None else None
        return None if first in self._sent else first

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

    def mark_sent(self, number: int) -> None:
        """Note that the program has the prompt of a turn, even if its feed does not show it yet."""
        self._sent.add(number)

    def assign(self, entries: Sequence[Entry], prompts: Mapping[int, PromptText]) -> list[TurnEntry]:
        """Return the entries with their turns, and the events of turns that start or end. `prompts` are the texts of
        waiting turns."""
        return [placed for entry in entries for placed in self._assign(entry, prompts)]

    def abort(self, failure: Failure | None) -> list[tuple[int, AnyBody]]:
        """End the running turn; `failure` None means that a user asked for it."""
        if self.running is None:
            return []
        self.ended, self.running = self.running, None
        outcome: Outcome = "failed" if failure else "cancelled"
        return [(self.ended, TurnEnded(outcome=outcome, failure=failure, conversation=self.conversation))]

    def reject(self, number: int, failure: Failure) -> TurnEnded:
        """End a waiting turn whose prompt was not taken; return the event."""
        self._waiting.remove(number)
        self.ended = number
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)

    def _assign(self, entry: Entry, prompts: Mapping[int, PromptText]) -> Iterator[TurnEntry]:
        body = entry.body
        if isinstance(body, AgentStarted) and body.conversation:
            self.conversation = body.conversation
        if isinstance(body, AgentPrompted):
            yield from self._start(self._match_prompt(body.text, prompts))
        yield TurnEntry(self.running or self._last or None, entry)
        if isinstance(body, AgentEnded) and self.running is not None:
            yield self._finish(self.running, self._end(body))

    def _match_prompt(self, heard: str, prompts: Mapping[int, PromptText]) -> int | None:
        """Return the waiting turn of a prompt that was taken; None if a user typed it."""
        if not self._waiting:
            return None
        first = self._waiting[0]
        if (prompt := prompts.get(first)) is not None and prompt.is_of(heard):
            return first
        # Another text is a user's, which comes first if it was queued in the program. Only if the program certainly has
        # the waiting prompt, it is that one, changed by the program: else that turn would wait for ever and be sent
        # twice. Mistaking a user's prompt for it gives an answer to the wrong turn; before it is sent, it would lose
        # it.
        return first if first in self._sent and self.running is None else None

    def _start(self, number: int | None) -> Iterator[TurnEntry]:
        """Start a turn for a prompt that was taken. A prompt that a user types during a turn belongs to that turn. A
        sent
        prompt (`number`) that arrives then gets its own turn, because a caller waits for it."""
        if self.running is not None:
            if number is None:
                return
            yield self._finish(self.running, TurnEnded(outcome="succeeded", conversation=self.conversation))
        if number is None:
            self._last = number = self._last + 1
        else:
            self._waiting.remove(number)
        self.running = number
        yield TurnEntry(number, Entry(TurnStarted(agent=self._agent)))

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
        failure = Failure(code=AgentFailed.code, message=message, hint="hv logs shows its output")
        return TurnEnded(outcome="failed", failure=failure, conversation=self.conversation)


def _normalized(text: str) -> str:
    """Normalize a text as the programs in the guest do (agents/shared). The blank character guards a text that looks
    like
    a command."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char not in "\u2800\ufffd")
