"""How long the steps of a task took, read from its events."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from hiveyard.core.events import PhaseEnded
from hiveyard.store import schema

# Bodies are written with their type first; LIKE with a fixed start is the same on every database.
_KIND = '{"type":"phase.ended"%'


def phases(conn: Connection, session: str) -> dict[str, float]:
    """Seconds of each phase in the order they first ended; one that was repeated counts with all its parts."""
    events = schema.events.c
    query = select(events.body).where(events.session == session, events.body.like(_KIND)).order_by(events.seq)
    seconds: dict[str, float] = {}
    for (text,) in conn.execute(query):
        body = msgspec.json.decode(text, type=PhaseEnded)
        seconds[body.phase] = seconds.get(body.phase, 0.0) + body.seconds
    return seconds
