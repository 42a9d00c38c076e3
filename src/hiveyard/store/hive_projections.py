"""Update the rows of the hive: members, messages and reminders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove
from hiveyard.core.states import NEXT_MESSAGE, MessageState, step
from hiveyard.kit.text import without_nul
from hiveyard.store.names import unknown
from hiveyard.store.prepared import Prepared
from hiveyard.store.schema import members, messages, reminders, sessions

Values = dict[str, Any]
Move = Callable[[Connection, str, e.Body, float, "int | None"], None]


# --- members ---------------------------------------------------------------------------------------------------------


def _joined(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MemberJoined)
    if conn.execute(select(sessions.c.id).where(sessions.c.id == session)).first() is None:
        raise unknown(session)
    if conn.execute(select(members.c.name).where(members.c.name == body.name)).first() is not None:
        raise IllegalMove(f"there is already a member {body.name}", hint=f"hv hive rm {body.name}")
    accepts = None if body.accepts is None else msgspec.json.encode(body.accepts).decode()
    values: Values = {
        "name": body.name,
        "session": session,
        "role": body.role,
        "accepts": accepts,
        "note": "",
        "stopped": False,
    }
    conn.execute(insert(members), {**values, "joined_at": at})


def _left(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MemberLeft)
    if not conn.execute(delete(members).where(members.c.session == session)).rowcount:
        raise _not_a_member(session)


def _slept(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    _change(conn, session, {"stopped": False})


def _stopped(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    _change(conn, session, {"stopped": True})


def _woken(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    _change(conn, session, {"stopped": False, "nap_until": None})


def _crashed(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    _change(conn, session, {})


def _napping(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MemberNapping)
    _change(conn, session, {"nap_until": body.until})


def _noted(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MemberNoted)
    _change(conn, session, {"note": without_nul(body.note)})


def _change(conn: Connection, session: str, values: Values) -> None:
    """Change the row of a member. Raises IllegalMove for a session that is none."""
    here = members.c.session == session
    change = update(members).where(here).values(values or {"session": members.c.session})
    if not conn.execute(change).rowcount:
        raise _not_a_member(session)


def _not_a_member(session: str) -> IllegalMove:
    return IllegalMove(f"session {session} is no member of the hive", hint="hv hive ls")


# --- messages --------------------------------------------------------------------------------------------------------


_SENT = Prepared(
    insert(messages).returning(messages.c.position),
    (
        *("id", "session", "state", "kind", "sender", "recipient", "text", "thread", "reply_to", "hops", "urgent"),
        *("files", "ask", "held_by", "turn", "sent_at"),
    ),
)
_IS_MEMBER = Prepared(select(members.c.name).where(members.c.session == bindparam("key")))


def _sent(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MessageSent)
    if session and _IS_MEMBER.first(conn, {"key": session}) is None:
        raise _not_a_member(session)
    state = step(NEXT_MESSAGE, None, body, f"message {body.message}")
    values: Values = {"id": body.message, "session": session, "state": state, "kind": body.kind}
    values |= {"sender": body.sender, "recipient": body.to, "text": without_nul(body.text), "ask": body.ask}
    values |= {"thread": body.thread or body.message, "reply_to": body.reply_to, "hops": body.hops}
    files = msgspec.json.encode(body.files).decode()
    values |= {"urgent": body.urgent, "files": files, "held_by": "", "turn": None, "sent_at": at}
    _SENT.first(conn, {**values, "state": state.value})


def _moved(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Move a message to its next state. Raises IllegalMove, for instance if it was delivered before."""
    assert isinstance(body, e.MessageEvent) and not isinstance(body, e.MessageSent)
    here = (messages.c.id == body.message) & (messages.c.session == session)
    row = conn.execute(select(messages.c.state).where(here)).first()
    state = step(NEXT_MESSAGE, None if row is None else MessageState(row.state), body, f"message {body.message}")
    values: Values = {"state": state}
    if isinstance(body, e.MessageHeld):
        values["held_by"] = body.ask
    if isinstance(body, e.MessageReleased):
        values["hops"] = 0
    if isinstance(body, e.MessageDelivered):
        values["turn"] = turn
    if not NEXT_MESSAGE[state]:
        values["ended_at"] = at
    conn.execute(update(messages).where(here).values(values))


# --- reminders -------------------------------------------------------------------------------------------------------


def _reminder_set(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.ReminderSet)
    _change(conn, session, {})
    values: Values = {"id": body.reminder, "session": session, "text": without_nul(body.text), "set_at": at}
    conn.execute(insert(reminders), {**values, "due_at": body.due_at, "every": body.every, "hops": body.hops})


def _reminder_due(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Take a reminder's due time, once: the row has another one then, or is gone."""
    assert isinstance(body, e.ReminderDue)
    here = (reminders.c.id == body.reminder) & (reminders.c.session == session) & (reminders.c.due_at == body.due_at)
    if body.next_at is None:
        done = conn.execute(delete(reminders).where(here))
    else:
        done = conn.execute(update(reminders).where(here).values(due_at=body.next_at))
    if not done.rowcount:
        raise _no_reminder(body.reminder)


def _reminder_cancelled(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.ReminderCancelled)
    here = (reminders.c.id == body.reminder) & (reminders.c.session == session)
    if not conn.execute(delete(reminders).where(here)).rowcount:
        raise _no_reminder(body.reminder)


def _no_reminder(id: str) -> IllegalMove:
    return IllegalMove(f"the reminder {id[:80]} is not set, or it is over")


MOVES: Mapping[type[e.Body], Move] = {
    e.MemberJoined: _joined,
    e.MemberLeft: _left,
    e.MemberAsleep: _slept,
    e.MemberStopped: _stopped,
    e.MemberCrashed: _crashed,
    e.MemberWoken: _woken,
    e.MemberNapping: _napping,
    e.MemberNoted: _noted,
    e.MessageSent: _sent,
    e.MessageDelivered: _moved,
    e.MessageRead: _moved,
    e.MessageHeld: _moved,
    e.MessageReleased: _moved,
    e.MessageDropped: _moved,
    e.ReminderSet: _reminder_set,
    e.ReminderDue: _reminder_due,
    e.ReminderCancelled: _reminder_cancelled,
}
