"""Read a session's past for people: what its turns used, what ended, and what its agent said last."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from hiveyard.core.events import AgentPrompted, AgentText, AgentToolCalled, AnyBody, ModelCalled
from hiveyard.core.usage import Usage
from hiveyard.store import schema

_ENDS = ("turn.ended", "task.completed", "task.failed", "session.failed")
_WORDS = ("agent.tool_called", "agent.text", "agent.prompted")
_events = schema.events.c
_decoder: msgspec.json.Decoder[AnyBody] = msgspec.json.Decoder(AnyBody)


def usage_by_turn(conn: Connection, session: str) -> dict[int, Usage]:
    """Return the usage of each turn that called a model."""
    query = select(_events.turn, _events.body).where(_events.session == session, _events.type == "model.called")
    used: dict[int, Usage] = {}
    for turn, text in conn.execute(query):
        body = _decoder.decode(text)
        if turn is not None and isinstance(body, ModelCalled):
            used[turn] = used.get(turn, Usage()) + body.usage
    return used


def last_ends(conn: Connection) -> dict[str, int]:
    """Return the number of the last event of each session that ended something a user waits for."""
    ids, theirs = schema.sessions.c.id, schema.events.alias().c
    of_session = select(func.max(theirs.seq)).where(theirs.session == ids, theirs.type.in_(_ENDS))
    query = select(ids, of_session.correlate(schema.sessions).scalar_subquery())
    return {row[0]: row[1] for row in conn.execute(query) if row[1]}


def last_words(conn: Connection, session: str) -> str:
    """Return the last thing that an agent said, did or was asked to do."""
    here = (_events.session == session) & _events.type.in_(_WORDS)
    newest = select(func.max(_events.seq)).where(here).scalar_subquery()
    text = conn.execute(select(_events.body).where(_events.seq == newest)).scalar()
    match _decoder.decode(text) if text else None:
        case AgentToolCalled(summary=words) | AgentText(text=words) | AgentPrompted(text=words):
            return words
        case _:
            return ""
