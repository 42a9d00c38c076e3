"""Read the rows of the hive as frozen dataclasses. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, Text, bindparam, func, or_, select

from hiveyard.core.errors import Ambiguous, NotFound
from hiveyard.core.events import MessageSent
from hiveyard.core.states import AskState, MessageState, TurnState
from hiveyard.kit.text import one_line, without_nul
from hiveyard.store import schema, views
from hiveyard.store.prepared import Prepared
from hiveyard.store.views import AskRow, TurnRow, as_ask

_members, _messages, _reminders = schema.members.c, schema.messages.c, schema.reminders.c
_asks, _turns, _events = schema.asks.c, schema.turns.c, schema.events.c


class MemberKey(NamedTuple):
    """The name of a member or of the operator, and the session of its mailbox."""

    name: str
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRow:
    """A member. `accepts` are the members that may write to it; None means all. `note` is what it says that it works
    on. It may have napped until `nap_until`, which can be over. `stopped`: a user stopped it while it slept."""

    name: str
    session: str
    role: str
    accepts: tuple[str, ...] | None
    note: str
    nap_until: float | None
    stopped: bool
    joined_at: float

    @property
    def key(self) -> MemberKey:
        return MemberKey(self.name, self.session)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRow:
    """A message. `position` orders all messages. `session` is that of its recipient, "" for the operator. `held_by` is
    the question that holds it. `turn` is the turn that got it. `ended_at` is when it was delivered, read or dropped."""

    position: int
    id: str
    session: str
    state: MessageState
    kind: str
    sender: str
    recipient: str
    text: str
    thread: str
    reply_to: str
    hops: int
    urgent: bool
    files: tuple[str, ...]
    ask: str
    held_by: str
    turn: int | None
    sent_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReminderRow:
    """A reminder that will be due."""

    id: str
    session: str
    text: str
    due_at: float
    every: float | None
    hops: int
    set_at: float


def members(conn: Connection) -> list[MemberRow]:
    """Return all members, in the order in which they joined."""
    return [_member(row) for row in conn.execute(select(schema.members).order_by(_members.joined_at, _members.name))]


_MEMBER = Prepared(select(schema.members).where(_members.name == bindparam("key")))


def find_member(conn: Connection, name: str) -> MemberRow | None:
    row = _MEMBER.first(conn, {"key": name})
    return None if row is None else _as_member(dict(zip(_members.keys(), row, strict=True)))


def member(conn: Connection, name: str) -> MemberRow:
    """Return a member. Raises NotFound."""
    if (found := find_member(conn, name)) is None:
        raise NotFound(f"the hive has no member {one_line(name, 80)!r}", hint="hv hive ls")
    return found


def member_of_session(conn: Connection, session: str) -> MemberRow | None:
    row = conn.execute(select(schema.members).where(_members.session == session)).first()
    return None if row is None else _member(row)


def message(conn: Connection, ref: str) -> MessageRow:
    """Return the message with this id, or the only one whose id begins like this. Raises NotFound, Ambiguous."""
    query = select(schema.messages).where(_messages.id.startswith(ref, autoescape=True)).limit(2)
    rows = conn.execute(query).all() if ref else []
    exact = [row for row in rows if row.id == ref] or rows
    if not exact:
        raise NotFound(f"there is no message {one_line(ref, 80)!r}", hint="hv hive mail")
    if len(exact) > 1:
        raise Ambiguous(f"several messages begin with {one_line(ref, 80)!r}", hint="hv hive mail")
    return _message(exact[0])


def mailbox(
    conn: Connection,
    session: str,
    *,
    states: Collection[MessageState] = (MessageState.PENDING,),
    sender: str | None = None,
    limit: int = 100,
) -> list[MessageRow]:
    """Return the first messages for a member, or for the operator (""), in these states: urgent ones first. `sender`
    selects those of one author."""
    query = select(schema.messages).where(_messages.session == session, _messages.state.in_(states))
    if sender is not None:
        query = query.where(_messages.sender == sender)
    ordered = query.order_by(_messages.urgent.desc(), _messages.position).limit(limit)
    return [_message(row) for row in conn.execute(ordered)]


def history(conn: Connection, name: str, *, limit: int = 1000) -> list[MessageRow]:
    """Return the latest messages from or for a member or the operator, oldest first."""
    query = select(schema.messages).where(or_(_messages.sender == name, _messages.recipient == name))
    rows = conn.execute(query.order_by(_messages.position.desc()).limit(limit)).all()
    return [_message(row) for row in reversed(rows)]


def count_messages(conn: Connection, state: MessageState) -> dict[str, int]:
    """Return how many messages in a state each recipient's session has."""
    query = select(_messages.session, func.count()).where(_messages.state == state).group_by(_messages.session)
    return {row[0]: row[1] for row in conn.execute(query)}


def count_waiting(conn: Connection, session: str) -> int:
    """Return how many messages wait for a member."""
    here = (_messages.session == session) & (_messages.state == MessageState.PENDING)
    return conn.execute(select(func.count()).where(here)).scalar() or 0


_RUNNING = Prepared(
    select(func.max(_turns.number)).where(_turns.session == bindparam("key"), _turns.state == bindparam("running"))
)
_LAST = Prepared(
    select(func.max(_turns.number)).where(_turns.session == bindparam("key"), _turns.started_at.is_not(None))
)


def running_turn(conn: Connection, session: str) -> int | None:
    """Return the number of the turn that runs in a session."""
    row = _RUNNING.first(conn, {"key": session, "running": TurnState.RUNNING.value})
    return None if row is None else row[0]


def open_turn(conn: Connection, session: str) -> TurnRow | None:
    """Return the first turn of a session that waits or runs."""
    here = (_turns.session == session) & (_turns.state != TurnState.ENDED)
    number = conn.execute(select(func.min(_turns.number)).where(here)).scalar()
    return None if number is None else views.turn(conn, session, number)


def last_turn(conn: Connection, session: str) -> int | None:
    """Return the number of the turn that runs in a session, else of the last one that ran."""
    row = _LAST.first(conn, {"key": session})
    return running_turn(conn, session) or (None if row is None else row[0])


_one, _other = bindparam("one", type_=Text()), bindparam("other", type_=Text())
_SENT_BETWEEN = Prepared(
    select(func.count()).where(
        or_(
            (_messages.sender == _one) & (_messages.recipient == _other),
            (_messages.sender == _other) & (_messages.recipient == _one),
        ),
        _messages.state != bindparam("held"),
        _messages.state != bindparam("dropped"),
        _messages.sent_at > bindparam("since"),
        _messages.sender != bindparam("without"),
    )
)


def sent_between(conn: Connection, one: str, other: str, since: float, *, without: str = "") -> int:
    """Return how many messages two have sent to each other after a time, without those that are held or dropped, and
    those that `without` wrote."""
    values = {"one": one, "other": other, "since": since, "without": without}
    states = {"held": MessageState.HELD.value, "dropped": MessageState.DROPPED.value}
    row = _SENT_BETWEEN.first(conn, {**values, **states})
    return 0 if row is None else int(row[0])


_REPEATED = Prepared(
    select(_messages.id)
    .where(
        *(_messages[name] == bindparam(name) for name in ("sender", "recipient", "reply_to", "kind", "text")),
        _messages.sent_at > bindparam("since"),
    )
    .order_by(_messages.position.desc())
)


def find_repeated(conn: Connection, one: MessageSent, since: float) -> MessageRow | None:
    """Return an earlier message with the same author, recipient, text and kind, sent after a time."""
    values = {"sender": one.sender, "recipient": one.to, "reply_to": one.reply_to, "kind": one.kind}
    row = _REPEATED.first(conn, {**values, "text": without_nul(one.text), "since": since})
    return None if row is None else message(conn, row[0])


_HOPS = Prepared(
    select(func.max(_messages.hops)).where(_messages.session == bindparam("key"), _messages.turn == bindparam("at"))
)


def hops_of_turn(conn: Connection, session: str, turn: int) -> int:
    """Return the greatest hop count of the messages that a turn got; -1 if it got none."""
    row = _HOPS.first(conn, {"key": session, "at": turn})
    return -1 if row is None or row[0] is None else int(row[0])


_STORM = "storm"
_ANY_STORM = Prepared(
    select(_asks.id).where(
        _asks.kind == bindparam("kind"),
        or_(
            (_asks.asker == _one) & (_asks.session == bindparam("other_session")),
            (_asks.asker == _other) & (_asks.session == bindparam("one_session")),
        ),
    )
)


def storms_between(conn: Connection, one: MemberKey, other: MemberKey) -> list[AskRow]:
    """Return the questions about messages that were held between two, oldest first. Each key is the name and session of
    one; the operator's session is ""."""
    values = {"one": one.name, "other": other.name, "one_session": one.session, "other_session": other.session}
    if _ANY_STORM.first(conn, {**values, "kind": _STORM}) is None:
        return []
    pair = or_(
        (_asks.asker == one.name) & (_asks.session == other.session),
        (_asks.asker == other.name) & (_asks.session == one.session),
    )
    query = select(schema.asks).where(_asks.kind == _STORM, pair).order_by(_asks.asked_at, _asks.id)
    return [as_ask(row) for row in conn.execute(query)]


def held_by(conn: Connection, ask: str) -> list[MessageRow]:
    """Return the messages that a question holds."""
    query = select(schema.messages).where(_messages.held_by == ask, _messages.state == MessageState.HELD)
    return [_message(row) for row in conn.execute(query.order_by(_messages.position))]


def count_crashes(conn: Connection, session: str, since: float) -> int:
    """Return how often a member crashed after a time."""
    here = (_events.session == session) & (_events.type == "member.crashed") & (_events.at > since)
    return conn.execute(select(func.count()).where(here)).scalar() or 0


def reminders(conn: Connection, session: str | None = None) -> list[ReminderRow]:
    """Return the reminders of a member, or all, the next one first."""
    query = select(schema.reminders).order_by(_reminders.due_at, _reminders.id)
    if session is not None:
        query = query.where(_reminders.session == session)
    return [ReminderRow(**row._mapping) for row in conn.execute(query)]


def open_asks(conn: Connection, *, kinds: Collection[str]) -> list[AskRow]:
    """Return the open questions of these kinds, oldest first."""
    query = select(schema.asks).where(_asks.state == AskState.OPEN, _asks.kind.in_(kinds))
    return [as_ask(row) for row in conn.execute(query.order_by(_asks.asked_at, _asks.id))]


def _member(row: Row[Any]) -> MemberRow:
    return _as_member(dict(row._mapping))


def _as_member(values: dict[str, Any]) -> MemberRow:
    accepts = values["accepts"]
    known = None if accepts is None else msgspec.json.decode(accepts, type=tuple[str, ...])
    return MemberRow(**values | {"accepts": known, "stopped": bool(values["stopped"])})


def _message(row: Row[Any]) -> MessageRow:
    values = dict(row._mapping) | {"state": MessageState(row.state)}
    return MessageRow(**values | {"files": msgspec.json.decode(row.files, type=tuple[str, ...])})
