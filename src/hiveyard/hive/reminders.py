"""Set, list and cancel the reminders of members. A reminder that is due becomes a message."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, MessageHeldBack, NotFound
from hiveyard.core.events import MessageSent, ReminderCancelled, ReminderDue, ReminderSet
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.names import SYSTEM
from hiveyard.hive.post import key_of, next_hop, post
from hiveyard.hive.settings import HiveSettings
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line
from hiveyard.store import hive_views, journal
from hiveyard.store.hive_views import ReminderRow

TEXT_LIMIT = 8 << 10
MAX_REMINDERS = 100
SHORTEST_PERIOD = 60.0
SOON = 3600.0
"""A reminder that is due sooner continues the chain of messages that led to it. So a member that wakes itself again and
again is held like members that write to each other without end."""
LONGEST = 10 * 366 * 86400.0
LATE = 5.0
"""Seconds of delay from which on the message says how late it is."""


class ReminderRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wish to be reminded of `text`: `at` a time (seconds since the epoch, or ISO 8601), `in` so many seconds, or
    `every` so many seconds."""

    text: str
    at: float | str | None = None
    in_: float | None = msgspec.field(default=None, name="in")
    every: float | None = None


class Reminders:
    """The reminders of all members."""

    def __init__(self, event_log: EventLog, settings: HiveSettings) -> None:
        self._log = event_log
        self._settings = settings

    async def set(self, member: str, request: ReminderRequest) -> ReminderRow:
        """Set a reminder; return it once it is journaled. Raises BadInput."""
        now, id = self._log.clock.now(), new_id()
        due = _due_at(request, now)

        def write(conn: Connection) -> ReminderRow:
            key = key_of(conn, member)
            if len(hive_views.reminders(conn, key.session)) >= MAX_REMINDERS:
                raise BadInput(f"{member} has {MAX_REMINDERS} reminders already", hint="cancel_reminder")
            hops = next_hop(conn, key) if due - now < SOON and request.every is None else 0
            body = ReminderSet(reminder=id, text=request.text, due_at=due, every=request.every, hops=hops)
            journal.record(conn, key.session, body, at=now)
            return next(row for row in hive_views.reminders(conn, key.session) if row.id == id)

        return await self._log.store.write(write)

    async def of(self, session: str) -> list[ReminderRow]:
        """Return the reminders of a member, the next one first."""
        return await self._log.read(lambda conn: hive_views.reminders(conn, session))

    async def cancel(self, session: str, ref: str) -> None:
        """Cancel a reminder, by its id or the beginning of it. Raises NotFound."""
        found = [row for row in await self.of(session) if ref and row.id.startswith(ref)]
        if len(found) != 1:
            raise NotFound(f"there is no reminder {one_line(ref, 80)!r}", hint="the tool reminders lists them")
        await self._log.record(session, ReminderCancelled(reminder=found[0].id))

    def deliver(self, conn: Connection, row: ReminderRow, now: float) -> None:
        """Put a due reminder into the mailbox of its member. One that repeats is due again at its next time from now:
        times that passed while no daemon ran are not made up for."""
        journal.record(
            conn, row.session, ReminderDue(reminder=row.id, due_at=row.due_at, next_at=_next(row, now)), at=now
        )
        if (member := hive_views.member_of_session(conn, row.session)) is None:
            return
        late = now - row.due_at
        told = [row.text, *([f"[{late:.0f} seconds late: it was due at {_time(row.due_at)}]"] if late > LATE else [])]
        message = MessageSent(
            message=new_id(), sender=SYSTEM, to=member.name, text="\n".join(told), kind="reminder", hops=row.hops
        )
        with suppress(MessageHeldBack):  # too many of them are held already
            post(conn, member.key, member.key, message, now, self._settings)


def _next(row: ReminderRow, now: float) -> float | None:
    if row.every is None:
        return None
    return row.due_at + row.every * max(1, math.floor((now - row.due_at) / row.every) + 1)


def _due_at(request: ReminderRequest, now: float) -> float:
    """Return when a reminder is due first. Raises BadInput."""
    if not request.text.strip() or len(request.text.encode(errors="replace")) > TEXT_LIMIT:
        raise BadInput(f"a reminder needs a text, of at most {TEXT_LIMIT} bytes")
    if request.every is not None and not SHORTEST_PERIOD <= request.every <= LONGEST:
        raise BadInput(f"every is {request.every:g}: it must be {SHORTEST_PERIOD:g} or more, and at most ten years")
    if request.at is not None and request.in_ is not None:
        raise BadInput("at and in both give the time: give one of them")
    if request.at is not None:
        due = _moment(request.at)
        if due <= now:
            raise BadInput(f"{_time(due)} is in the past; it is {_time(now)}")
    else:
        wait = request.in_ if request.in_ is not None else request.every
        if wait is None or not 0 < wait < math.inf:
            raise BadInput("a reminder needs a time", hint="at, in, or every")
        due = now + wait
    if due > now + LONGEST:
        raise BadInput("the reminder would be due in more than ten years")
    return due


def _moment(at: float | str) -> float:
    if not isinstance(at, str):
        if not 0 < at < 1e11:
            raise BadInput(f"at is {at:g}: it must be seconds since the epoch, or 2030-01-31T12:00:00Z")
        return float(at)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        raise BadInput(f"at is {one_line(at, 80)!r}: it must be like 2030-01-31T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
