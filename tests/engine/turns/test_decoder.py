"""Lines of an agent become entries; known lines without an event are kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hiveyard import agents
from hiveyard.core.events import AgentEvent, AgentOutput, AgentText
from hiveyard.core.ports import HasTerminal, Verdict
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.kit.lines import LineSplitter
from tests.transcripts.record_terminals import home


class Letters:
    """A parser: `-` and empty lines have no event, `?` is unknown, the rest is text. It stores its input."""

    def __init__(self) -> None:
        self.fed: list[bytes] = []

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        self.fed.append(line)
        said = line.decode()
        return [] if said in ("-", "") else [AgentOutput(text=said) if said.startswith("?") else AgentText(text=said)]

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return Verdict(exit_code == 0)


def shown(entries: Sequence[Entry]) -> list[tuple[str, bytes | None]]:
    """Return the texts of entries, output in brackets, and their raw lines."""
    found = []
    for body, raw in entries:
        assert isinstance(body, AgentOutput | AgentText)
        found.append((f"[{body.text}]" if isinstance(body, AgentOutput) else body.text, raw))
    return found


def test_lines_without_an_event_are_kept_with_the_next_event() -> None:
    meaning, splitter = OutputDecoder(Letters(), 10), LineSplitter(limit=1000, offset=10)
    assert shown(meaning.entries(splitter.feed(b"-\n-\na\n-\n"))) == [("a", b"-\n-\na")]
    assert meaning.read == 16, "the last line has to be read again after a restart"
    assert meaning.entries(splitter.feed(b"-\n")) == []
    assert meaning.read == 16
    assert shown(meaning.entries(splitter.feed(b"b\n?1\n-\n?2\nc\n"))) == [
        ("b", b"-\n-\nb"),
        ("[?1\n?2]", b"?1\n-\n?2"),
        ("c", b"c"),
    ]
    assert meaning.read == splitter.offset
    assert meaning.rest() == []
    assert meaning.entries(splitter.feed(b"-\n")) == []
    assert shown(meaning.rest()) == [("[]", b"-")]
    assert meaning.read == splitter.offset


def test_empty_lines_count_towards_the_limit() -> None:
    meaning, splitter = OutputDecoder(Letters(), 0), LineSplitter(limit=1000)
    assert meaning.entries(splitter.feed(b"\n" * 1000)) == []
    for _ in range(400):
        found = meaning.entries(splitter.feed(b"\n" * 1000))
        if found:
            break
    assert [text for text, _ in shown(found)] == ["[]"]
    assert meaning.read == splitter.offset


def test_unrecorded_lines_are_read_again_and_none_twice() -> None:
    stream = b"-\na\n-\n-\n?\nb\n-\nc\n"
    for cut in range(len(stream)):
        raw: list[bytes] = []
        first = OutputDecoder(Letters(), 0)
        raw += [entry.raw for entry in first.entries(LineSplitter(limit=99).feed(stream[:cut])) if entry.raw]
        after = Letters()
        second = OutputDecoder(after, first.read)
        second.replay(raw)
        splitter = LineSplitter(limit=99, offset=first.read)
        raw += [entry.raw for entry in second.entries(splitter.feed(stream[first.read :])) if entry.raw]
        assert b"\n".join(raw) + b"\n" == stream
        assert after.fed == stream.splitlines()


def test_a_flood_without_events_is_recorded() -> None:
    meaning = OutputDecoder(Letters(), 0)
    found = meaning.entries(LineSplitter(limit=99).feed(b"-\n" * 300_000))
    assert [len(entry.raw or b"") for entry in found] == [599_999]


@pytest.mark.parametrize("agent", ["claude", "opencode"])
def test_real_feeds_cause_no_plain_output_events(agent: str) -> None:
    adapter = agents.by_name(agent)
    assert isinstance(adapter, HasTerminal)
    for feed in home(agent).glob("*.feed"):
        meaning, data = OutputDecoder(adapter.feed_parser(), 0), feed.read_bytes()
        entries = meaning.entries(LineSplitter(limit=1 << 20).feed(data))
        assert entries and not [entry for entry in entries if isinstance(entry.body, AgentOutput)], feed
        kept = b"".join(entry.raw + b"\n" for entry in [*entries, *meaning.rest()] if entry.raw is not None)
        assert kept == data
