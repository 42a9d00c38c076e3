"""Parse output whose lines are JSON objects with a `type`, as several agent programs print it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from hiveyard.core.events import AgentEvent, AgentOutput, clip
from hiveyard.kit.shape import text
from hiveyard.kit.text import decode

JSON = Mapping[str, object]
Reader = Callable[[JSON], Iterator[AgentEvent] | None]
"""Converts an object into events; None means that it is unknown."""

OUTPUT_LIMIT = 16 << 10
"""The number of characters kept of a tool's output. The raw line keeps all of it."""


def events(line: bytes, read: Reader) -> Sequence[AgentEvent]:
    """Return the events of a line. A line that is not an object, or is unknown, is kept as output."""
    if not line.strip():
        return []
    entry = decoded(line)
    parsed = None if entry is None else read(entry)
    return [AgentOutput(text=clip(decode(line)))] if parsed is None else list(parsed)


def decoded(line: bytes) -> JSON | None:
    """Return the object of a line, or None."""
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def by_type(readers: Mapping[str, Reader]) -> Reader:
    """Return a Reader that selects another one by the object's `type`."""

    def read(entry: JSON) -> Iterator[AgentEvent] | None:
        reader = readers.get(text(entry.get("type")))
        return None if reader is None else reader(entry)

    return read


def ignore(entry: JSON) -> Iterator[AgentEvent]:
    """Return no events: a Reader for known objects without information for a reader of events."""
    return iter(())
