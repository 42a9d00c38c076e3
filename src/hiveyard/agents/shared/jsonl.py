"""Output of which each line is a JSON object with a `type`, as several agent programs print it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from hiveyard.core.events import AgentEvent, AgentOutput, clip
from hiveyard.kit.shape import text
from hiveyard.kit.text import decode

JSON = Mapping[str, object]
Reader = Callable[[JSON], Iterator[AgentEvent] | None]
"""Gives an object its meaning; None: it has none here."""

OUTPUT_LIMIT = 16 << 10
"""Characters kept of what a tool gave; the raw line keeps all of it."""


def events(line: bytes, read: Reader) -> Sequence[AgentEvent]:
    """What a line means; one that is no object, or has no meaning, is kept as output."""
    if not line.strip():
        return []
    said = decoded(line)
    found = None if said is None else read(said)
    return [AgentOutput(text=clip(decode(line)))] if found is None else list(found)


def decoded(line: bytes) -> JSON | None:
    """The object of a line, or None for one that has none."""
    try:
        said = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def by_type(readers: Mapping[str, Reader]) -> Reader:
    """Reads an object by its `type`; one of another has no meaning."""

    def read(said: JSON) -> Iterator[AgentEvent] | None:
        reader = readers.get(text(said.get("type")))
        return None if reader is None else reader(said)

    return read


def nothing(said: JSON) -> Iterator[AgentEvent]:
    """A Reader for what is understood and tells a reader of events nothing."""
    return iter(())
