"""Read a session's current events: those that no rewind undid and that its import did not replace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from hiveyard.core.errors import NotFound
from hiveyard.core.events import (
    AnyBody,
    Event,
    LiveStarted,
    SessionForked,
    SessionImported,
    SessionRewound,
    SessionStopAsked,
    SessionStopped,
    SnapshotTaken,
    TurnEnded,
)
from hiveyard.store import journal, schema, views
from hiveyard.store.views import SnapshotRow

_events = schema.events.c
_decoder: msgspec.json.Decoder[AnyBody] = msgspec.json.Decoder(AnyBody)
_STARTS = ("session.forked", "session.rewound", "session.imported", "session.running", "session.stopped")
"""The latest of these events tells whether the session has a start point that it has not used yet."""
_ELSEWHERE = ("session.forked", "session.rewound", "session.imported")
_MAX_INTRODUCTIONS = 20
"""The number of an agent's latest `agent.started` events that are searched for the name of its conversation."""


class Range(NamedTuple):
    """The events with numbers greater than `after`, up to `upto`."""

    after: int
    upto: int


class Point(NamedTuple):
    """A snapshot, the event that recorded it, and the number of that event."""

    row: SnapshotRow
    taken: SnapshotTaken
    seq: int


def point(conn: Connection, session: str, ref: str) -> Point:
    """Return the snapshot of a session with that id or name. Raises NotFound."""
    rows = views.snapshots(conn, session)
    for row in [*(row for row in rows if row.id == ref), *(row for row in reversed(rows) if row.name == ref)]:
        seq, taken = _taken(conn, session, row.id)
        return Point(row, taken, seq)
    known = ", ".join(row.name for row in rows[-10:])
    hint = f"snapshots: {known}" if known else f"hv snapshot {session}"
    raise NotFound(f"session {session} has no snapshot {ref[:80]!r}", hint=hint)


def current_ranges(conn: Connection, session: str, upto: int | None = None) -> list[Range]:
    """Return the ranges of a session's current events, as of event `upto` (None: now), in order."""
    end = 2**63 - 1 if upto is None else upto
    found: list[Range] = []
    while last := _last(conn, session, end, "session.rewound", "session.imported"):
        seq, body = last
        found.append(Range(seq, end))
        if not isinstance(body, SessionRewound):
            return found
        end, _ = _taken(conn, session, body.snapshot)
    return [Range(0, end), *reversed(found)]


def raw_lines(conn: Connection, session: str, upto: int | None = None) -> Iterator[bytes]:
    """Yield the raw lines of the current events. Consume them while the connection is open."""
    for part in current_ranges(conn, session, upto):
        query = select(_events.raw).where(*_within(session, part), _events.raw.is_not(None)).order_by(_events.seq)
        for row in conn.execute(query.execution_options(yield_per=64)):
            yield row.raw


def conversation(conn: Connection, session: str, upto: int | None = None) -> str | None:
    """Return the conversation that the agent named last, by the agent's own name for it."""
    for part in reversed(current_ranges(conn, session, upto)):
        named = ("agent.started", "session.forked")
        query = select(_events.body).where(*_within(session, part), _events.type.in_(named))
        for row in conn.execute(query.order_by(_events.seq.desc()).limit(_MAX_INTRODUCTIONS)):
            if name := str(msgspec.json.decode(row.body).get("conversation", "")):
                return name
    imported = _last(conn, session, 2**63 - 1, "session.imported")
    if imported is not None and isinstance(imported[1], SessionImported):
        return imported[1].conversation or None
    return None


def pending_start(conn: Connection, session: str) -> SessionForked | SessionRewound | None:
    """Return the fork or rewind that the session has not run from yet; None if there is none.

    Forks and rewinds before an import do not count: the author of the archive wrote them."""
    last = _last(conn, session, 2**63 - 1, *_STARTS)
    return last[1] if last is not None and isinstance(last[1], SessionForked | SessionRewound) else None


def live_process(conn: Connection, session: str) -> LiveStarted | None:
    """Return the start of the agent's latest live process; None if there was none."""
    last = _last(conn, session, 2**63 - 1, "live.started")
    return last[1] if last is not None and isinstance(last[1], LiveStarted) else None


def live_events(conn: Connection, session: str, after: int) -> list[Event]:
    """Return the next events since the start of the agent's latest live process, after event `after`."""
    last = _last(conn, session, 2**63 - 1, "live.started")
    return [] if last is None else journal.events(conn, session=session, after=max(after, last[0]))


def feed_offset(conn: Connection, session: str) -> int:
    """Return up to which byte the agent's feed, or the output of its live process, is in the journal."""
    return views.session(conn, session).feed_offset


def has_run(conn: Connection, session: str) -> bool:
    """Whether an agent ever worked in the session's files, here or in the session that it was forked from."""
    return _last(conn, session, 2**63 - 1, "session.running", "session.forked") is not None


def is_collected(conn: Connection, session: str) -> bool:
    """Whether all work was collected when the session stopped last."""
    last = _last(conn, session, 2**63 - 1, "session.stopped")
    return last is None or not isinstance(last[1], SessionStopped) or last[1].collected


def stop_asked(conn: Connection, session: str) -> SessionStopAsked | None:
    """Return the request to stop the session, if it has neither stopped nor begun again since."""
    last = _last(conn, session, 2**63 - 1, "session.stop_asked", *_STARTS, "session.preparing")
    return last[1] if last is not None and isinstance(last[1], SessionStopAsked) else None


def latest(conn: Connection, session: str, *types: str) -> AnyBody | None:
    """Return the latest event of a session that has one of these types."""
    last = _last(conn, session, 2**63 - 1, *types)
    return None if last is None else last[1]


def is_at_turn_end(conn: Connection, session: str) -> bool:
    """Whether nothing happened since the last turn ended: no turn, snapshot, fork, rewind or import."""
    last = _last(conn, session, 2**63 - 1, "turn.ended", "turn.started", "snapshot.taken", *_ELSEWHERE)
    return last is not None and isinstance(last[1], TurnEnded)


def _taken(conn: Connection, session: str, snapshot: str) -> tuple[int, SnapshotTaken]:
    begin = f'{{"type":"snapshot.taken","snapshot":"{snapshot}"'
    here = (_events.session == session) & (_events.type == "snapshot.taken") & _events.body.startswith(begin)
    query = select(_events.seq, _events.body).where(here)
    row = conn.execute(query.order_by(_events.seq.desc()).limit(1)).first()
    if row is None:
        raise NotFound(f"session {session} has no snapshot {snapshot[:80]!r}")
    body = _decoder.decode(row.body)
    assert isinstance(body, SnapshotTaken)
    return row.seq, body


def _last(conn: Connection, session: str, upto: int, *types: str) -> tuple[int, AnyBody] | None:
    query = select(_events.seq, _events.body).where(*_within(session, Range(0, upto)), _events.type.in_(types))
    row = conn.execute(query.order_by(_events.seq.desc()).limit(1)).first()
    return None if row is None else (row.seq, _decoder.decode(row.body))


def _within(session: str, part: Range) -> tuple[ColumnElement[bool], ...]:
    return (_events.session == session, _events.seq > part.after, _events.seq <= part.upto)
