"""What the transaction at hand has appended and removed, kept beside its connection until the commit.

The writer hands it to the followers once it is durable. A connection without one (a plain one, in a script or a
migration) is no mistake: then nobody follows.
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
    """An event and about how many bytes it holds in memory."""

    event: Event
    size: int


class Mark(NamedTuple):
    """A place in an outbox to go back to."""

    appended: int
    forgotten: int


@dataclass(slots=True)
class Outbox:
    appended: list[Appended] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def mark(self) -> Mark:
        return Mark(len(self.appended), len(self.forgotten))

    def back_to(self, mark: Mark) -> None:
        del self.appended[mark.appended :]
        del self.forgotten[mark.forgotten :]


def attach(conn: Connection) -> Outbox:
    """A fresh outbox on `conn`."""
    outbox = conn.info[_KEY] = Outbox()
    return outbox


@contextmanager
def unnoted(conn: Connection) -> Iterator[None]:
    """Leaves what is appended in this block out, however much it is: followers find it in the database, sent there by
    the gap before the next event. So append one more after it, in the same write."""
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
