"""Raw lines of an agent, given their meaning: entries for the journal, nothing lost, floods folded together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hiveyard.core.events import AgentOutput, clip
from hiveyard.core.ports import Parser, Verdict
from hiveyard.engine.ledger import Entry
from hiveyard.kit.lines import Line
from hiveyard.kit.text import decode


class Meaning:
    """A parser, with what it takes to feed it again after a restart."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def replay(self, raw: Iterable[bytes]) -> None:
        """Bring the parser to where it was, from what is stored."""
        for stored in raw:
            for line in stored.split(b"\n"):
                self._parser.feed(line)

    def entries(self, lines: Sequence[Line]) -> list[Entry]:
        """The entries of some lines. Lines without a meaning that follow each other become one entry, so that a
        program that prints a gigabyte costs thousands of rows and not millions."""
        found: list[Entry] = []
        plain: list[bytes] = []
        for line in lines:
            events = self._parser.feed(line.data)
            if len(events) <= 1 and all(isinstance(event, AgentOutput) for event in events):
                plain.append(line.data)
                continue
            found += _folded(plain)
            plain = []
            found.append(Entry(events[0], line.data))
            found += [Entry(event) for event in events[1:]]
        return found + _folded(plain)

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return self._parser.verdict(exit_code, stderr)


def _folded(lines: list[bytes]) -> list[Entry]:
    if not lines:
        return []
    raw = b"\n".join(lines)
    return [Entry(AgentOutput(text=clip(decode(raw))), raw)]
