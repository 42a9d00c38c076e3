"""What a session's present stands on: of its events those that a rewind did not take back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, or_, select

from hiveyard.core.errors import NotFound
from hiveyard.core.events import (
    AnyBody,
    SessionForked,
    SessionImported,
    SessionRewound,
    SessionStopped,
    SnapshotTaken,
    TurnEnded,
)
from hiveyard.store import schema, views
from hiveyard.store.views import SnapshotRow

_events = schema.events.c
_decoder: msgspec.json.Decoder[AnyBody] = msgspec.json.Decoder(AnyBody)
_TURNINGS = ("session.forked", "session.rewound", "session.imported", "session.running", "session.stopped")
"""The latest of these tells whether a session is still to begin somewhere."""
_ELSEWHERE = ("session.forked", "session.rewound", "session.imported")
_STARTS = 20
"""How many of an agent's latest introductions are looked through for one that names its conversation."""


class Stretch(NamedTuple):
    """Events with numbers above `after` and up to `upto`."""

    after: int
    upto: int


class Point(NamedTuple):
    """A snapshot, the event that told of it, and the number of that."""

    row: SnapshotRow
    taken: SnapshotTaken
    seq: int


def point(conn: Connection, session: str, ref: str) -> Point:
    """The snapshot of a session with that id or name. Raises NotFound."""
    rows = views.snapshots(conn, session)
    for row in [*(row for row in rows if row.id == ref), *(row for row in reversed(rows) if row.name == ref)]:
        seq, taken = _taken(conn, session, row.id)
        return Point(row, taken, seq)
    known = ", ".join(row.name for row in rows[-10:])
    hint = f"there are {known}" if known else f"hv snapshot {session}"
    raise NotFound(f"session {session} has no snapshot {ref[:80]!r}", hint=hint)


def stretches(conn: Connection, session: str, upto: int | None = None) -> list[Stretch]:
    """What counts of a session's events, as of event `upto` (None: now), in order."""
    end = 2**63 - 1 if upto is None else upto
    found: list[Stretch] = []
    while turning := _last(conn, session, end, "session.rewound", "session.imported"):
        seq, body = turning
        found.append(Stretch(seq, end))
        if not isinstance(body, SessionRewound):
            return found
        end, _ = _taken(conn, session, body.snapshot)
    return [Stretch(0, end), *reversed(found)]


def raw_lines(conn: Connection, session: str, upto: int | None = None) -> Iterator[bytes]:
    """The raw lines that count, read piece by piece: go through them where you have the connection."""
    for stretch in stretches(conn, session, upto):
        query = select(_events.raw).where(*_within(session, stretch), _events.raw.is_not(None)).order_by(_events.seq)
        for row in conn.execute(query.execution_options(yield_per=64)):
            yield row.raw


def conversation(conn: Connection, session: str, upto: int | None = None) -> str | None:
    """The agent's own name of the conversation that it said it is in, last."""
    for stretch in reversed(stretches(conn, session, upto)):
        named = or_(*map(_is, ("agent.started", "session.forked")))
        query = select(_events.body).where(*_within(session, stretch), named)
        for row in conn.execute(query.order_by(_events.seq.desc()).limit(_STARTS)):
            if name := str(msgspec.json.decode(row.body).get("conversation", "")):
                return name
    imported = _last(conn, session, 2**63 - 1, "session.imported")
    if imported is not None and isinstance(imported[1], SessionImported):
        return imported[1].conversation or None
    return None


def to_begin_at(conn: Connection, session: str) -> SessionForked | SessionRewound | None:
    """Where the session is still to begin: it was forked or rewound, and has not run since. What came before an import
    was written by whoever made the archive, and tells nothing of where anything begins here."""
    last = _last(conn, session, 2**63 - 1, *_TURNINGS)
    return last[1] if last is not None and isinstance(last[1], SessionForked | SessionRewound) else None


def has_run(conn: Connection, session: str) -> bool:
    """Whether an agent was ever at work in its files, here or in the session that it was forked from."""
    return _last(conn, session, 2**63 - 1, "session.running", "session.forked") is not None


def is_out(conn: Connection, session: str) -> bool:
    """Whether all that was done until the session was stopped, last, was brought out of its files."""
    last = _last(conn, session, 2**63 - 1, "session.stopped")
    return last is None or not isinstance(last[1], SessionStopped) or last[1].collected


def stands_after_turn(conn: Connection, session: str) -> bool:
    """Whether the session stands where its last turn ended, and no snapshot was taken since."""
    last = _last(conn, session, 2**63 - 1, "turn.ended", "turn.started", "snapshot.taken", *_ELSEWHERE)
    return last is not None and isinstance(last[1], TurnEnded)


def _taken(conn: Connection, session: str, snapshot: str) -> tuple[int, SnapshotTaken]:
    begin = f'{{"type":"snapshot.taken","snapshot":"{snapshot}"'
    query = select(_events.seq, _events.body).where(_events.session == session, _events.body.startswith(begin))
    row = conn.execute(query.order_by(_events.seq.desc()).limit(1)).first()
    if row is None:
        raise NotFound(f"session {session} has no snapshot {snapshot[:80]!r}")
    body = _decoder.decode(row.body)
    assert isinstance(body, SnapshotTaken)
    return row.seq, body


def _last(conn: Connection, session: str, upto: int, *types: str) -> tuple[int, AnyBody] | None:
    query = select(_events.seq, _events.body).where(*_within(session, Stretch(0, upto)), or_(*map(_is, types)))
    row = conn.execute(query.order_by(_events.seq.desc()).limit(1)).first()
    return None if row is None else (row.seq, _decoder.decode(row.body))


def _within(session: str, stretch: Stretch) -> tuple[ColumnElement[bool], ...]:
    return (_events.session == session, _events.seq > stretch.after, _events.seq <= stretch.upto)


def _is(type: str) -> ColumnElement[bool]:
    return _events.body.startswith(f'{{"type":"{type}"')
