"""Read the durations of a task's phases from its events."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, and_, or_, select

from hiveyard.core.events import PhaseEnded
from hiveyard.store import schema

_AGENT_ENDED = '{"type":"phase.ended","phase":"agent"'


def phases(conn: Connection, session: str) -> dict[str, float]:
    """Return the seconds of each phase, in the order of their first end. Repetitions are added up."""
    events = schema.events.c
    query = select(events.body).where(events.session == session, events.type == "phase.ended").order_by(events.seq)
    seconds: dict[str, float] = {}
    for (text,) in conn.execute(query):
        body = msgspec.json.decode(text, type=PhaseEnded)
        seconds[body.phase] = seconds.get(body.phase, 0.0) + body.seconds
    return seconds


def cancelled_in_time(conn: Connection, session: str) -> bool:
    """Whether the task's cancellation was requested before its agent ended."""
    events = schema.events.c
    ended = and_(events.type == "phase.ended", events.body.startswith(_AGENT_ENDED))
    either = or_(ended, events.type == "task.cancel_asked")
    query = select(events.type).where(events.session == session, either).order_by(events.seq).limit(1)
    return conn.execute(query).scalar() == "task.cancel_asked"
