"""Arrange a transcript for the page: turns as sections, and a tool's result inside its call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from hiveyard.core.events import Event
from hiveyard.transcript import Entry, entries


@dataclass(slots=True)
class Item:
    """A part of the transcript. A call has its results once they are known."""

    seq: int
    at: float
    turn: int | None
    entry: Entry
    results: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class Section:
    """The items of one turn, or those before the first one (None)."""

    turn: int | None
    items: list[Item] = field(default_factory=list)


def items(events: Sequence[Event]) -> list[Item]:
    """Return the items of events, one after the other."""
    found = []
    for event in events:
        plain = {"session": event.session, "turn": event.turn, "body": msgspec.to_builtins(event.body)}
        found += [Item(event.seq, event.at, event.turn, entry) for entry in entries(plain)]
    return found


def sections(found: Sequence[Item]) -> list[Section]:
    """Return items as sections. What belongs to no turn stays in the section that it happened in."""
    arranged = [Section(None)]
    calls: dict[str, Item] = {}
    for item in found:
        if item.turn is not None and item.turn != arranged[-1].turn:
            arranged.append(Section(item.turn))
        call = item.entry.call
        if item.entry.kind == "result" and call in calls:
            calls[call].results.append(item.entry)
            continue
        if item.entry.kind == "call" and call:
            calls[call] = item
        arranged[-1].items.append(item)
    return [section for section in arranged if section.items]
