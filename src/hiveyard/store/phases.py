"""Read the durations of a task's phases from its events."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, or_, select

from hiveyard.core.events import PhaseEnded
from hiveyard.store import schema

# Bodies are written with their type first; LIKE with a fixed start is the same on every database.
_KIND = '{"type":"phase.ended"%'
_AGENT_ENDED = '{"type":"phase.ended","phase":"agent"'
_CANCEL_ASKED = '{"type":"task.cancel_asked"'


def phases(conn: Connection, session: str) -> dict[str, float]:
    """Return the seconds of each phase, in the order of their first end. Repetitions are added up."""
    events = schema.events.c
    query = select(events.body).where(events.session == session, events.body.like(_KIND)).order_by(events.seq)
    seconds: dict[str, float] = {}
    for (text,) in conn.execute(query):
        body = msgspec.json.decode(text, type=PhaseEnded)
        seconds[body.phase] = seconds.get(body.phase, 0.0) + body.seconds
    return seconds


def cancelled_in_time(conn: Connection, session: str) -> bool:
    """Whether the task's cancellation was requested before its agent ended."""
    events = schema.events.c
    either = or_(events.body.startswith(_AGENT_ENDED), events.body.startswith(_CANCEL_ASKED))
    query = select(events.body).where(events.session == session, either).order_by(events.seq).limit(1)
    first: str | None = conn.execute(query).scalar()
    return first is not None and first.startswith(_CANCEL_ASKED)
