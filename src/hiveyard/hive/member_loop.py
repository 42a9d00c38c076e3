"""Keep one member going: look at its mailbox and its session, do the one thing that follows, and look again.

A step reads the journal and keeps nothing in memory that matters. So it can be repeated after a crash at any moment."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, HiveyardError, IllegalMove
from hiveyard.core.events import MemberAsleep, MemberWoken, Notice
from hiveyard.core.states import Activity, Phase, TurnState
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.bells import wait_for
from hiveyard.hive.crash_watch import CrashWatch
from hiveyard.hive.frame import LooseEnds, framed
from hiveyard.hive.hive import ASLEEP, Hive, is_napping, loose_ends
from hiveyard.hive.mail_files import GUEST_MEMBER
from hiveyard.hive.mailbox import as_facts, unique_kinds
from hiveyard.hive.names import OPERATOR
from hiveyard.store import hive_views, views
from hiveyard.store.hive_views import MemberRow, MessageRow
from hiveyard.store.views import SessionRow, TurnRow

log = logging.getLogger(__name__)
AGAIN, RETRY = 1.0, 5.0
"""Seconds after which a step that failed is repeated, if nothing happens before."""


class Situation(NamedTuple):
    """A member at one moment. `mail` are the first messages that may wake it now, of `waiting` in all. `turn` is the
    turn that waits or runs."""

    member: MemberRow
    session: SessionRow
    turn: TurnRow | None
    mail: list[MessageRow]
    waiting: int
    roles: dict[str, str]
    ends: LooseEnds
    now: float

    @property
    def napping(self) -> bool:
        return is_napping(self.member, self.now)


class MemberLoop:
    """The loop of one member. Only this loop starts turns for it."""

    def __init__(self, session: str, hive: Hive, engine: Engine, event_log: EventLog) -> None:
        self._id = session
        self._hive = hive
        self._engine = engine
        self._log = event_log
        self._crashes = CrashWatch(hive, engine, event_log)
        self._interrupted: int | None = None
        self._complaint = ""
        self._furnished = False

    async def run(self) -> None:
        """Run until the member has left the hive."""
        while True:
            with self._hive.bells.listening(self._id) as bell:
                if (situation := await self._situation()) is None:
                    return
                await wait_for(bell, self._log.clock, await self._try(situation))

    async def _try(self, situation: Situation) -> float | None:
        """Do a step; return the seconds until the next one is needed, None if only a change makes it so."""
        try:
            wait = await self._step(situation)
        except IllegalMove:
            return AGAIN  # something changed meanwhile, for instance `recv` took a message
        except HiveyardError as error:
            await self._complain(error)
            return RETRY
        self._complaint = ""
        return wait

    async def _complain(self, error: HiveyardError) -> None:
        """Report why a member cannot go on, once."""
        if error.message != self._complaint:
            self._complaint = error.message
            log.warning("member %s waits: %s", self._id, error.message)
            await self._log.record(self._id, Notice(message=f"its mail waits: {error.message}", code=error.code))

    async def _situation(self) -> Situation | None:
        now = self._log.clock.now()
        return await self._log.read(lambda conn: _situation(conn, self._id, now))

    async def _step(self, at: Situation) -> float | None:
        if at.session.phase is Phase.STOPPED and at.session.reason == ASLEEP:
            return await self._asleep(at)
        if at.session.phase is Phase.STOPPED:
            return await self._crashes.look(at.member, at.session)
        await self._crashes.withdraw(at.member)
        if at.session.phase is not Phase.RUNNING or at.session.activity is Activity.PAUSED:
            return None
        if at.turn is not None:
            await self._hurry(at)
            return None
        if at.mail:
            await self._deliver(at)
            return None
        return await self._rest(at)

    async def _asleep(self, at: Situation) -> float | None:
        """Make a machine again if there is mail, which is delivered once the session runs."""
        if at.member.stopped:
            return None
        if not at.mail:
            return _until_nap_ends(at)
        if self._engine.sessions.waits(self._id):
            return None
        await self._engine.sessions.resume(self._id, wait=True)
        await self._log.record(self._id, MemberWoken(name=at.member.name, by=at.mail[0].sender))
        return None

    async def _deliver(self, at: Situation) -> None:
        """Start a turn with the first messages: they are delivered in the transaction that creates it."""
        prompt, messages = framed(at.mail, at.roles, at.now, at.ends, waiting=at.waiting)
        runner = await self._engine.sessions.agent_runner(self._id)
        await self._furnish()
        await self._put_files(messages)
        woken = [MemberWoken(name=at.member.name, by=messages[0].sender)] if at.napping else []
        await runner.add(prompt, *as_facts(messages, "turn"), *woken, woken_by=unique_kinds(messages))

    async def _furnish(self) -> None:
        """Make the member's own directory, once for each daemon: a rewind may have removed it."""
        if not self._furnished:
            async with self._engine.sessions.guest(self._id) as guest:
                await guest.mkdir(GUEST_MEMBER)
            self._furnished = True

    async def _hurry(self, at: Situation) -> None:
        """Add urgent messages to the turn that runs, or end it if its program takes none."""
        assert at.turn is not None
        urgent = [message for message in at.mail if message.urgent]
        if not urgent or at.turn.state is not TurnState.RUNNING or self._interrupted == at.turn.number:
            return
        prompt, messages = framed(urgent, at.roles, at.now)
        try:
            await self._put_files(messages)
            await self._engine.steering.add(self._id, prompt, *as_facts(messages, "steer"))
        except BadInput:
            self._interrupted = at.turn.number
            await self._engine.sessions.interrupt(self._id)

    async def _put_files(self, messages: tuple[MessageRow, ...]) -> None:
        if names := [name for message in messages for name in message.files]:
            async with self._engine.sessions.guest(self._id) as guest:
                await self._hive.files.put(guest, names)

    async def _rest(self, at: Situation) -> float | None:
        """Let an idle member sleep; return the seconds until it is time for that, or until its nap ends."""
        limit = self._hive.settings.asleep_after
        left = at.session.updated_at + limit - at.now
        if limit and left <= 0:
            await self._log.record(self._id, MemberAsleep(name=at.member.name))
            await self._engine.sessions.stop(self._id, ASLEEP)
            return None
        return min((wait for wait in (left if limit else None, _until_nap_ends(at)) if wait is not None), default=None)


def _until_nap_ends(at: Situation) -> float | None:
    """Return the seconds until mail that waits because of a nap may be delivered."""
    if at.member.nap_until is None or not at.napping or not at.waiting:
        return None
    return at.member.nap_until - at.now


def _situation(conn: Connection, session: str, now: float) -> Situation | None:
    """Return a member's situation; None for a session that is no member any more."""
    if (member := hive_views.member_of_session(conn, session)) is None:
        return None
    return Situation(
        member=member,
        session=views.session(conn, session),
        turn=hive_views.open_turn(conn, session),
        mail=hive_views.mailbox(conn, session, sender=OPERATOR if is_napping(member, now) else None),
        waiting=hive_views.count_waiting(conn, session),
        roles={row.name: row.role for row in hive_views.members(conn)},
        ends=loose_ends(conn, member),
        now=now,
    )
