"""Collect what the current transaction appends and removes, until the commit.

The writer publishes it to the followers once it is durable. A connection without an outbox, as in a script or a
migration, has no followers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from hiveyard.core.events import Event

_KEY = "hiveyard.outbox"


class Appended(NamedTuple):
    """An event, and about how many bytes it takes in memory."""

    event: Event
    size: int


class Mark(NamedTuple):
    """A position in an outbox to return to."""

    appended: int
    forgotten: int


@dataclass(slots=True)
class Outbox:
    """The events appended, and the sessions removed, by one transaction."""

    appended: list[Appended] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def mark(self) -> Mark:
        return Mark(len(self.appended), len(self.forgotten))

    def back_to(self, mark: Mark) -> None:
        del self.appended[mark.appended :]
        del self.forgotten[mark.forgotten :]


def attach(conn: Connection) -> Outbox:
    """Attach an empty outbox to `conn`, and return it."""
    outbox = conn.info[_KEY] = Outbox()
    return outbox


@contextmanager
def uncollected(conn: Connection) -> Iterator[None]:
    """Do not collect the events that this block appends: they may be too many for memory.

    Append one more event after the block in the same write. The gap before it sends followers to the database."""
    outbox = conn.info.pop(_KEY, None)
    try:
        yield
    finally:
        if outbox is not None:
            conn.info[_KEY] = outbox


def note_appended(conn: Connection, event: Event, size: int) -> None:
    if (outbox := conn.info.get(_KEY)) is not None:
        outbox.appended.append(Appended(event, size))


def note_forgotten(conn: Connection, session: str) -> None:
    if (outbox := conn.info.get(_KEY)) is not None:
        outbox.forgotten.append(session)
