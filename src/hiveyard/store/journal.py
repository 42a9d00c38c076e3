"""The journal: append an event together with the state that follows from it, and read events.

Functions take a connection inside a transaction, as `Store.write` and `Store.read` provide it. They use SQL that SQLite
and PostgreSQL share, and must not know the followers.

An event of a type that this version does not know (a newer Hiveyard used the database before) is read as a `Notice`
with the code `unknown_event` that quotes the stored JSON. Nothing is lost, and the mirror copies the event as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import msgspec
from sqlalchemy import Connection, Row, Select, bindparam, delete, func, insert, literal, select, union, update

from hiveyard.core.errors import IllegalMove, NotFound
from hiveyard.core.events import AnyBody, Event, Notice, clip
from hiveyard.core.states import Phase
from hiveyard.store import names, outbox, projections, schema, views
from hiveyard.store.prepared import Prepared

UNKNOWN_EVENT = "unknown_event"
PAGE_EVENTS = 512
PAGE_BYTES = 4 << 20
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_EVENT_OVERHEAD = 500  # bytes that a small event takes in memory in addition to its texts, measured

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyBody] = msgspec.json.Decoder(AnyBody)
_events = schema.events.c
_append = Prepared(insert(schema.events).returning(_events.seq), ("at", "session", "turn", "type", "body", "raw"))

_Columns: TypeAlias = tuple[int, float, str, "int | None", str, "bytes | None"]
_FROM_HERE: Select[_Columns] = (
    select(_events.seq, _events.at, _events.session, _events.turn, _events.body, _events.raw)
    .where(_events.seq > bindparam("after"))
    .order_by(_events.seq)
    # Fetched in small batches, so that a page of large events is never in memory completely before it is cut.
    .execution_options(yield_per=64)
)
_OF_SESSION = _FROM_HERE.where(_events.session == bindparam("session"))


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the mirror writes it: the same JSON as of `Event`, with the body as it is stored."""

    seq: int
    at: float
    session: str
    turn: int | None
    body: msgspec.Raw
    raw: bytes | None


def record(
    conn: Connection, session: str, body: AnyBody, *, at: float, turn: int | None = None, raw: bytes | None = None
) -> Event:
    """Append an event and update the rows that follow from it. `at` is in seconds since the epoch.

    `session` is the id of a task or session that exists or that this event creates; "" stands for Hiveyard itself.
    Raises IllegalMove if core/states does not allow the transition, and NotFound for an unknown session. Nothing is
    changed then.
    """
    text, body = _encode(body)
    projections.apply(conn, session, body, at=at, turn=turn)
    values = {"at": at, "session": session, "turn": turn, "type": body.type, "body": text, "raw": raw}
    row = _append.first(conn, values)
    assert row is not None
    event = Event(seq=row[0], at=at, session=session, turn=turn, body=body, raw=raw)
    outbox.note_appended(conn, event, _EVENT_OVERHEAD + len(text) + len(raw or b""))
    return event


def record_many(
    conn: Connection,
    session: str,
    entries: Iterable[tuple[AnyBody, bytes | None]],
    *,
    at: float,
    turn: int | None = None,
) -> list[Event]:
    """Append events of one session in order, each with its raw line or None. Raises as `record` does."""
    return [record(conn, session, body, at=at, turn=turn, raw=raw) for body, raw in entries]


def advance_output(
    conn: Connection, session: str, turn: int, offset: int, *, stream: str = "stdout", since: int | None = None
) -> None:
    """Record that a turn's output (`stdout` or `stderr`) is in the journal up to byte `offset`.

    Call it in the transaction that records the events of those bytes. Reading then continues with the next byte after
    a crash at any moment. `since` is the offset at which the caller started. Raises IllegalMove if the stored offset
    differs from it, or is greater than `offset`; NotFound for an unknown turn.
    """
    column = {"stdout": schema.turns.c.output_offset, "stderr": schema.turns.c.stderr_offset}[stream]
    here = (schema.turns.c.session == session) & (schema.turns.c.number == turn)
    expected = column <= offset if since is None else (column == since) & (column <= offset)
    change = update(schema.turns).where(here, expected).values({column: literal(offset, column.type)})
    if conn.execute(change).rowcount:
        return
    now = conn.execute(select(column).where(here)).scalar()
    if now is None:
        raise NotFound(f"session {session} has no turn {turn}")
    start = "" if since is None else f" from {since}"
    raise IllegalMove(f"{stream} of turn {turn} of session {session} is at {now}: it cannot move{start} to {offset}")


def advance_feed(conn: Connection, session: str, offset: int) -> None:
    """Record that a session's feed is in the journal up to byte `offset`, by the same rule as `advance_output`.

    Raises IllegalMove if the stored offset is greater; NotFound for an unknown session."""
    column = schema.sessions.c.feed_offset
    here = schema.sessions.c.id == session
    change = update(schema.sessions).where(here, column <= offset).values({column: literal(offset, column.type)})
    if conn.execute(change).rowcount:
        return
    if (now := conn.execute(select(column).where(here)).scalar()) is None:
        raise names.unknown(session)
    raise IllegalMove(f"the feed of session {session} is at {now}: it cannot move to {offset}")


def move_feed(conn: Connection, session: str, offset: int) -> None:
    """Record that reading a session's feed continues at byte `offset`: it is another file than before."""
    conn.execute(update(schema.sessions).where(schema.sessions.c.id == session).values(feed_offset=offset))


def events(
    conn: Connection,
    *,
    after: int = 0,
    session: str | None = None,
    limit: int = PAGE_EVENTS,
    max_bytes: int = PAGE_BYTES,
) -> list[Event]:
    """Return the next events after a sequence number, in order; an empty list if there are none yet.

    Returns at most `limit` events. The one whose JSON and raw line exceed `max_bytes` in total is the last."""
    query = _after(after, session).limit(limit)
    return [_event(row) for row in _bounded(conn, query, max_bytes)]


def events_before(conn: Connection, session: str, before: int, limit: int = PAGE_EVENTS) -> list[Event]:
    """Return the last events of a session before a sequence number, in order: at most `limit`, bounded as `events`."""
    here = _OF_SESSION.params(after=0, session=session).where(_events.seq < before)
    query = here.order_by(None).order_by(_events.seq.desc()).limit(limit)
    return [_event(row) for row in reversed(_bounded(conn, query, PAGE_BYTES))]


def lines(
    conn: Connection, session: str, *, after: int = 0, upto: int | None = None, limit: int = PAGE_EVENTS
) -> list[tuple[int, bytes]]:
    """Return the next events of a session (up to a sequence number): their numbers, and JSON lines with the newline."""
    query = _after(after, session).limit(limit)
    if upto is not None:
        query = query.where(_events.seq <= upto)
    return [(row.seq, _line(row)) for row in _bounded(conn, query, PAGE_BYTES)]


def event_line(event: Event) -> bytes:
    """Return an event as the JSON line used in files and streams."""
    return _encoder.encode(event) + b"\n"


def last_seq(conn: Connection, session: str | None = None) -> int:
    """Return the greatest sequence number in the journal (of a session), or 0."""
    query = select(func.max(_events.seq))
    if session is not None:
        query = query.where(_events.session == session)
    return conn.execute(query).scalar() or 0


def has(conn: Connection, session: str, seq: int) -> bool:
    """Whether the journal holds this event of this session."""
    query = select(_events.seq).where(_events.seq == seq, _events.session == session)
    return conn.execute(query).first() is not None


def sessions_with_events(conn: Connection) -> list[str]:
    """Return the ids of all tasks and sessions. Each has at least the event that created it."""
    known = union(select(schema.tasks.c.id), select(schema.sessions.c.id)).subquery()
    return list(conn.execute(select(known.c.id).order_by(known.c.id)).scalars())


def raw_lines(conn: Connection, session: str, turn: int) -> Iterator[bytes]:
    """Yield the raw output lines of a turn in order, read in small batches.

    Consume them while the connection is open: `store.read(lambda conn: replay(raw_lines(conn, ...)))`."""
    query = (
        select(_events.raw)
        .where(_events.session == session, _events.turn == turn, _events.raw.is_not(None))
        .order_by(_events.seq)
        .execution_options(yield_per=64)
    )
    for row in conn.execute(query):
        yield row.raw


_OF_SESSIONS = (
    schema.members,
    schema.messages,
    schema.reminders,
    schema.asks,
    schema.results,
    schema.turns,
    schema.machines,
    schema.ports,
    schema.snapshots,
    schema.events,
)


def forget(conn: Connection, session: str) -> None:
    """Remove a finished task or session with its events. Their sequence numbers are never used again.

    Raises NotFound; IllegalMove while it is active or one of its machines may still exist.
    """
    _check_finished(conn, session)
    for table in _OF_SESSIONS:
        conn.execute(delete(table).where(table.c.session == session))
    for table in (schema.sessions, schema.tasks):
        conn.execute(delete(table).where(table.c.id == session))
    outbox.note_forgotten(conn, session)


def _check_finished(conn: Connection, session: str) -> None:
    task = views.find_task(conn, session)
    workspace = views.find_session(conn, session)
    if task is None and workspace is None:
        raise names.unknown(session)
    if task is not None and not task.state.over:
        raise IllegalMove(f"{task.slug} is {task.state}: it cannot be removed now", hint=f"hv cancel {task.slug}")
    if workspace is not None and workspace.phase in (Phase.PREPARING, Phase.RUNNING):
        raise IllegalMove(f"{workspace.slug} is {workspace.phase}: it cannot be removed now")
    for machine in views.machines(conn, live_only=True, session=session):
        raise IllegalMove(f"machine {machine.name} of {session} is {machine.status}: remove it first")


def _after(after: int, session: str | None) -> Select[_Columns]:
    if session is None:
        return _FROM_HERE.params(after=after)
    return _OF_SESSION.params(after=after, session=session)


def _bounded(conn: Connection, query: Select[_Columns], max_bytes: int) -> Sequence[Row[_Columns]]:
    """Return rows until their total size exceeds `max_bytes`."""
    rows: list[Row[_Columns]] = []
    size = 0
    with conn.execute(query) as result:
        for row in result:
            rows.append(row)
            size += len(row.body) + len(row.raw or b"")
            if size > max_bytes:
                break
    return rows


def _event(row: Row[_Columns]) -> Event:
    return Event(seq=row.seq, at=row.at, session=row.session, turn=row.turn, body=_decode(row.body), raw=row.raw)


def _line(row: Row[_Columns]) -> bytes:
    body = msgspec.Raw(row.body.encode())
    line = Line(seq=row.seq, at=row.at, session=row.session, turn=row.turn, body=body, raw=row.raw)
    return _encoder.encode(line) + b"\n"


def _encode(body: AnyBody) -> tuple[str, AnyBody]:
    """Return the JSON of a body, and the body that this JSON decodes to."""
    try:
        return _encoder.encode(body).decode(), body
    except UnicodeEncodeError:
        # A guest can write half of a surrogate pair as a JSON escape; it has no UTF-8 form.
        text = json.dumps(msgspec.to_builtins(body), ensure_ascii=False, separators=(",", ":"))
        text = _LONE_SURROGATE.sub("\ufffd", text)
        return text, _decoder.decode(text)


def _decode(text: str) -> AnyBody:
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError:
        return Notice(code=UNKNOWN_EVENT, message=clip(text, 2000))
