"""Update the rows of questions: those of an agent's program, and those that the hive keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from hiveyard.core import events as e
from hiveyard.core.states import NEXT_ASK, AskState, step
from hiveyard.kit.text import without_nul
from hiveyard.store.schema import asks

PERMISSION = "permission"
"""The kind of a question that an agent's program asks. It ends with its turn; the others outlive it."""

Values = dict[str, Any]
Move = Callable[[Connection, str, e.Body, float, "int | None"], None]


def expire_permissions(conn: Connection, session: str, at: float) -> None:
    """End what the programs of a session asked: they do not wait any more."""
    here = (asks.c.session == session) & (asks.c.state == AskState.OPEN) & (asks.c.kind == PERMISSION)
    conn.execute(update(asks).where(here).values(state=AskState.EXPIRED, ended_at=at))


def _asked(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Store a question that waits for a user. One without an id of ours is asked at the program's own terminal."""
    assert isinstance(body, e.AgentAsked)
    if not body.ask:
        return
    values: Values = {name: without_nul(getattr(body, name)) for name in ("request", "message", "tool", "input")}
    _open(conn, body, {**values, "id": body.ask, "session": session, "turn": turn, "kind": PERMISSION, "asked_at": at})


def _opened(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.AskOpened)
    values: Values = {"id": body.ask, "session": session, "turn": turn, "kind": body.kind, "asked_at": at}
    values |= {"message": without_nul(body.question), "request": "", "tool": "", "input": ""}
    values |= {"asker": body.asker, "target": body.to, "multi": body.multi, "expires_at": body.expires_at}
    _open(conn, body, values)


def _open(conn: Connection, body: e.AgentAsked | e.AskOpened, values: Values) -> None:
    options = without_nul(msgspec.json.encode(body.options).decode())
    state = step(NEXT_ASK, None, body, f"the question {body.ask}")
    conn.execute(insert(asks), {**values, "options": options, "state": state})


def _ended(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """End a question, once. Raises IllegalMove for one that is not open."""
    assert isinstance(body, e.AskAnswered | e.AskExpired | e.AskWithdrawn)
    here = (asks.c.id == body.ask) & (asks.c.session == session)
    row = conn.execute(select(asks.c.state).where(here)).first()
    state = step(NEXT_ASK, None if row is None else AskState(row.state), body, f"the question {body.ask}")
    values: Values = {"state": state, "ended_at": at}
    if isinstance(body, e.AskAnswered):
        answer: Values = {"allow": body.allow, "option": body.option, "message": body.message}
        answer |= {"options": body.options} if body.options else {}
        values |= {"answer": without_nul(msgspec.json.encode(answer).decode()), "answered_by": body.by}
    conn.execute(update(asks).where(here).values(values))


MOVES: Mapping[type[e.Body], Move] = {
    e.AgentAsked: _asked,
    e.AskOpened: _opened,
    **dict.fromkeys((e.AskAnswered, e.AskExpired, e.AskWithdrawn), _ended),
}
