"""Start members again whose session ended unasked, and tell the manager; after several times, ask the operator.

Whether a session ended unasked, and how often, is read from the journal. So a new daemon goes on where one ended."""

from __future__ import annotations

import enum

from sqlalchemy import Connection

from hiveyard.core.events import (
    AskOpened,
    AskOption,
    AskWithdrawn,
    BudgetExhausted,
    MemberCrashed,
    MemberWoken,
    MessageSent,
    SessionStopAsked,
    SessionStopped,
)
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.asks import CRASH, LEAVE, START
from hiveyard.hive.hive import ASLEEP, MANAGER, Hive
from hiveyard.hive.last_lines import last_lines
from hiveyard.hive.names import OPERATOR, SYSTEM
from hiveyard.hive.post import post
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line
from hiveyard.store import hive_views, journal, lineage
from hiveyard.store.hive_views import MemberKey, MemberRow
from hiveyard.store.views import SessionRow

RESTARTS, WITHIN = 3, 600.0
"""A member is started again so often in so many seconds."""
AGAIN = 1.0
"""Seconds until a session whose end or start is not over yet is looked at again."""
_LINES = 20
_REASON = 1000
_CHOICES = (
    AskOption(id=START, name="start it again", allow=True),
    AskOption(id=LEAVE, name="leave it stopped", allow=False),
)


class Fate(enum.Enum):
    """The consequence for a member whose session has stopped."""

    CRASHED = "crashed"
    """Its session ended unasked, and that is not journaled yet."""
    STARTS = "starts"
    RESTS = "rests"


class CrashWatch:
    """The watch over the session of one member."""

    def __init__(self, hive: Hive, engine: Engine, event_log: EventLog) -> None:
        self._hive = hive
        self._sessions = engine.sessions
        self._log = event_log

    async def look(self, member: MemberRow, session: SessionRow) -> float | None:
        """Start a member again whose session ended unasked. Return the seconds until it must be looked at again."""
        now = self._log.clock.now()
        fate = await self._log.read(lambda conn: fate_of(conn, member.session))
        if fate is Fate.CRASHED:
            fate = await self._log.store.write(lambda conn: self._crashed(conn, member, session.reason or "", now))
        elif fate is Fate.STARTS and self._sessions.find_runner(member.session) is not None:
            return None if self._sessions.waits(member.session) else AGAIN
        if fate is Fate.STARTS:
            await self._sessions.resume(member.session, wait=True)
        elif member.stopped:
            await self.withdraw(member)
        return None

    def _crashed(self, conn: Connection, member: MemberRow, reason: str, now: float) -> Fate:
        """Journal a crash; return whether the member starts again."""
        if (fate := fate_of(conn, member.session)) is not Fate.CRASHED:
            return fate  # somebody stopped or removed it meanwhile
        reason, lines = one_line(reason, _REASON), last_lines(conn, member.session, _LINES)
        spent = lineage.latest(conn, member.session, "budget.exhausted", "session.preparing")
        crashes = hive_views.count_crashes(conn, member.session, now - WITHIN)
        rests = crashes >= RESTARTS or isinstance(spent, BudgetExhausted)
        ask = new_id() if rests else ""
        journal.record(conn, member.session, MemberCrashed(name=member.name, reason=reason, ask=ask), at=now)
        if rests:
            journal.record(conn, member.session, _question(ask, member, reason), at=now)
        then = "It rests until the operator decides." if rests else f"It starts again ({crashes + 1} of {RESTARTS})."
        told = [f"{member.name} ended unasked: {reason}", then, "The last lines of its transcript:", *lines]
        self._tell_managers(conn, member, "\n".join(told), now)
        return Fate.RESTS if rests else Fate.STARTS

    def _tell_managers(self, conn: Connection, member: MemberRow, text: str, now: float) -> None:
        for other in hive_views.members(conn):
            if other.role == MANAGER and other.session != member.session:
                message = MessageSent(message=new_id(), sender=SYSTEM, to=other.name, text=text)
                post(conn, MemberKey(SYSTEM, ""), other.key, message, now, self._hive.settings)

    async def withdraw(self, member: MemberRow) -> None:
        """End the question about a member that has been started or stopped otherwise."""

        def questions(conn: Connection) -> list[str]:
            return [ask.id for ask in hive_views.open_asks(conn, kinds=(CRASH,)) if ask.session == member.session]

        for ask in await self._log.read(questions):
            await self._log.record(member.session, AskWithdrawn(ask=ask))


def fate_of(conn: Connection, session: str) -> Fate:
    """Return what follows for a member whose session has stopped and is not asleep."""
    here = ("session.stopped", "session.stop_asked", "member.stopped", "member.crashed", "member.woken")
    last = lineage.latest(conn, session, *here)
    if isinstance(last, SessionStopped):
        asked = lineage.latest(conn, session, "session.stop_asked", "session.preparing")
        # A member that was to sleep has crashed if its session ended for another reason first.
        return Fate.RESTS if isinstance(asked, SessionStopAsked) and asked.reason != ASLEEP else Fate.CRASHED
    starts = isinstance(last, MemberWoken) or (isinstance(last, MemberCrashed) and not last.ask)
    return Fate.STARTS if starts else Fate.RESTS


def _question(ask: str, member: MemberRow, reason: str) -> AskOpened:
    question = f"{member.name} ended unasked and rests: {reason}"
    return AskOpened(ask=ask, kind="crash", asker=SYSTEM, to=OPERATOR, question=question, options=_CHOICES)
