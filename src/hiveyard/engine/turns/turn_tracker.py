"""Track the turns of an agent at its terminal by its feed: each prompt starts a turn, whoever typed it.

A terminal tells which text it took, and not for whom. So the prompts that were sent are found in the feed by their
text; this guess is here and nowhere else."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from hiveyard.core.events import AgentPrompted, TurnEnded, TurnStarted
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.turn_queue import TurnEntry, TurnQueue
from hiveyard.store.views import TurnRow


class PromptText:
    """A prompt's text in a form to compare with the feed, where white space at the ends, invisible characters and the
    end of a long text are missing."""

    def __init__(self, text: str) -> None:
        self._normalized = _normalized(text[: 2 * TEXT_LIMIT])

    def is_of(self, heard: str) -> bool:
        if len(heard) > TEXT_LIMIT:  # clipped
            return self._normalized.startswith(_normalized(heard[:TEXT_LIMIT]))
        return self._normalized == _normalized(heard)


class TurnTracker(TurnQueue):
    """The turns of a terminal, where a user may type prompts, too."""

    def __init__(self, agent: str, rows: Sequence[TurnRow], conversation: str | None) -> None:
        super().__init__(agent, rows, conversation)
        self._sent: set[int] = set()

    @property
    def next(self) -> int | None:
        """The turn whose prompt is to be sent now: the first waiting one, if it was not sent and no turn runs."""
        first = super().next
        return None if first in self._sent else first

    def mark_sent(self, number: int) -> None:
        """Note that the program has the prompt of a turn, even if its feed does not show it yet."""
        self._sent.add(number)

    def assign_feed(self, entries: Sequence[Entry], prompts: Mapping[int, PromptText]) -> list[TurnEntry]:
        """Return the entries of a feed with their turns, and the events of turns that start or end. `prompts` are the
        texts of waiting turns."""
        return [placed for entry in entries for placed in self._heard(entry, prompts)]

    def _heard(self, entry: Entry, prompts: Mapping[int, PromptText]) -> Iterator[TurnEntry]:
        if isinstance(entry.body, AgentPrompted):
            yield from self._taken(self._match_prompt(entry.body.text, prompts))
        yield from self._assign(entry)

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

    def _taken(self, number: int | None) -> Iterator[TurnEntry]:
        """Start a turn for a prompt that was taken. A prompt that a user types during a turn belongs to that turn. A
        sent prompt (`number`) that arrives then gets its own turn, because a caller waits for it."""
        if self.running is not None:
            if number is None:
                return
            yield self._finish(self.running, TurnEnded(outcome="succeeded", conversation=self.conversation))
        if number is not None:
            yield self.start(number)
            return
        self._last = self.running = self._last + 1
        yield TurnEntry(self._last, Entry(TurnStarted(agent=self._agent)))


def _normalized(text: str) -> str:
    """Normalize a text as the programs in the guest do (agents/shared). The blank character guards a text that looks
    like a
    command."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char not in "\u2800\ufffd")
