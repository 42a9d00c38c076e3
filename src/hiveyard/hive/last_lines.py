"""Show the end of a member's transcript to another member."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from hiveyard.core.events import Event
from hiveyard.kit.text import one_line
from hiveyard.store import journal
from hiveyard.transcript import clean, entries

_EVENTS = 300
_WIDTH = 300


def last_lines(conn: Connection, session: str, count: int) -> list[str]:
    """Return the last lines of a session's transcript, without control characters, each cut to a width."""
    lines = [line for event in journal.events_before(conn, session, 2**62, _EVENTS) for line in _lines(event)]
    return lines[-count:]


def _lines(event: Event) -> list[str]:
    shown = entries({"turn": event.turn, "body": msgspec.to_builtins(event.body)})
    texts = [f"{entry.line}\n{entry.body}" if entry.line else entry.body for entry in shown]
    return [one_line(line, _WIDTH) for text in texts for line in clean(text)]
