"""Raw lines of an agent, given their meaning: entries for the journal, nothing lost, floods folded together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hiveyard.core.events import AgentEvent, AgentOutput, clip
from hiveyard.core.ports import Parser, Verdict
from hiveyard.engine.event_log import Entry
from hiveyard.kit.lines import Line
from hiveyard.kit.text import decode

_HELD = 256 << 10
"""Bytes of lines that tell nothing which wait for one that does."""


class OutputDecoder:
    """A parser, with what it takes to feed it again after a restart.

    A line that is known and tells nothing is no event: it is kept in front of the next that is one, in that one's raw
    lines. `read` is the offset up to which all lines are in the entries that were given: from there on they have to be
    read again after a restart."""

    def __init__(self, parser: Parser, read: int) -> None:
        self.read = read
        self._parser = parser
        self._end = read
        self._raw: list[bytes] = []
        self._plain: list[bytes] = []

    def replay(self, raw: Iterable[bytes]) -> None:
        """Bring the parser to where it was, from what is stored."""
        for stored in raw:
            for line in stored.split(b"\n"):
                self._parser.feed(line)

    def entries(self, lines: Sequence[Line]) -> list[Entry]:
        """The entries of some lines. Lines without a meaning that follow each other become one entry, so that a
        program that prints a gigabyte costs thousands of rows and not millions."""
        found: list[Entry] = []
        for line in lines:
            events = self._parser.feed(line.data)
            if _telling(events) and self._plain:
                found.append(self._folded())
            self._raw.append(line.data)
            self._end = line.end
            if _telling(events):
                found.append(Entry(events[0], self._taken()))
                found += [Entry(event) for event in events[1:]]
            elif events:
                self._plain.append(line.data)
        if self._plain or self._end - self.read > _HELD:
            found.append(self._folded())
        return found

    def rest(self) -> list[Entry]:
        """The entry of lines that told nothing, when no other is to come."""
        return [self._folded()] if self._raw else []

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return self._parser.verdict(exit_code, stderr)

    def _folded(self) -> Entry:
        said, self._plain = b"\n".join(self._plain), []
        return Entry(AgentOutput(text=clip(decode(said))), self._taken())

    def _taken(self) -> bytes:
        raw, self._raw, self.read = b"\n".join(self._raw), [], self._end
        return raw


def _telling(events: Sequence[AgentEvent]) -> bool:
    """Whether there is more in it than output."""
    return any(not isinstance(event, AgentOutput) for event in events) or len(events) > 1
