"""Decode an agent's raw output lines into journal entries. No line is lost; lines without a meaning are folded into one
entry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hiveyard.core.events import AgentEvent, AgentOutput, AnyBody, Notice, clip
from hiveyard.core.ports import Parser, Verdict
from hiveyard.engine.event_log import Entry
from hiveyard.kit.lines import Line
from hiveyard.kit.text import decode

_PENDING_LIMIT = 256 << 10
"""Bytes of lines without an event that wait for a line with one."""


class OutputDecoder:
    """A parser, with the state to feed it again after a restart.

    A line that is known and has no event is kept in front of the next line that has one, in the raw lines of that
    entry. `read` is the offset up to which all lines are in the entries that were returned: after a restart, reading
    continues from there."""

    def __init__(self, parser: Parser, read: int) -> None:
        self.read = read
        self._parser = parser
        self._end = read
        self._raw: list[bytes] = []
        self._output: list[bytes] = []

    def replay(self, raw: Iterable[bytes]) -> None:
        """Bring the parser to its former state from the stored lines."""
        for stored in raw:
            for line in stored.split(b"\n"):
                self._parser.feed(line)

    def entries(self, lines: Sequence[Line]) -> list[Entry]:
        """Return the entries of some lines. Consecutive lines of plain output become one entry, so that a program that
        prints a gigabyte costs thousands of rows and not millions. A line that was cut is followed by a Notice of how
        much is missing."""
        found: list[Entry] = []
        for line in lines:
            events = self._parser.feed(line.data)
            has_meaning = _has_meaning(events)
            if has_meaning and self._output:
                found.append(self._folded())
            self._raw.append(line.data)
            self._end = line.end
            if has_meaning:
                found.append(Entry(events[0], self._take_raw()))
                found += [Entry(event) for event in events[1:]]
            elif events:
                self._output.append(line.data)
            if line.cut:
                found += [*self.rest(), Entry(_cut_notice(line))]
        if self._output or self._end - self.read > _PENDING_LIMIT:
            found.append(self._folded())
        return found

    def entry(self, body: AnyBody) -> Entry:
        """Return the entry of an event that is not from the output, after the lines that are pending."""
        return Entry(body, self._take_raw() if self._raw else None)

    def rest(self) -> list[Entry]:
        """Return the entry of the pending lines, when no other line is to come."""
        return [self._folded()] if self._raw else []

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return self._parser.verdict(exit_code, stderr)

    def _folded(self) -> Entry:
        output, self._output = b"\n".join(self._output), []
        return Entry(AgentOutput(text=clip(decode(output))), self._take_raw())

    def _take_raw(self) -> bytes:
        raw, self._raw, self.read = b"\n".join(self._raw), [], self._end
        return raw


def _has_meaning(events: Sequence[AgentEvent]) -> bool:
    """Whether there is more in the events than plain output."""
    return any(not isinstance(event, AgentOutput) for event in events) or len(events) > 1


def _cut_notice(line: Line) -> Notice:
    kept = len(line.data)
    return Notice(
        message=f"a line of the agent's output was cut after {kept} bytes, {line.cut} bytes were left out;"
        " engine.line_limit_mib in the settings moves the limit"
    )
