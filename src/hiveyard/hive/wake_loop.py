"""Run the hive: follow the journal, and let each member look at its mailbox when something happened for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from hiveyard.core import events as e
from hiveyard.core.errors import HiveyardError
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.resources import Resources
from hiveyard.hive.deadlines import Deadlines
from hiveyard.hive.hive import Hive
from hiveyard.hive.manager_control import ManagerControl
from hiveyard.hive.member_loop import MemberLoop
from hiveyard.hive.members import Members
from hiveyard.store import hive_views, journal

log = logging.getLogger(__name__)
RETRY = 5.0
"""Seconds until the journal is followed again after it could not be read."""
_FOR_MEMBERS = (
    e.MemberEvent
    | e.MessageSent
    | e.MessageReleased
    | e.TurnStarted
    | e.TurnEnded
    | e.SessionRunning
    | e.SessionStopped
    | e.SessionUnpaused
)
"""Events after which a member looks at its mailbox."""
_FOR_DEADLINES = e.ReminderSet | e.ReminderCancelled | e.AskOpened


class WakeLoop:
    """The loops of all members, and the one that rings their bells."""

    def __init__(self, hive: Hive, engine: Engine, event_log: EventLog, group: TaskGroup) -> None:
        self._hive = hive
        self._engine = engine
        self._log = event_log
        self._group = group
        self._deadlines = Deadlines(hive, event_log)
        self._running: set[str] = set()

    async def start(self) -> None:
        """Start the loops of the members that there are; return then. Later members get theirs when they join."""
        seq = await self._log.read(journal.last_seq)
        for member in await self._log.read(hive_views.members):
            self._start(member.session)
        self._group.start_soon(self._deadlines.run, name="reminders")
        self._group.start_soon(self._follow, seq, name="wake members")

    def _start(self, session: str) -> None:
        if session not in self._running:
            self._running.add(session)
            self._group.start_soon(self._run, session, name=f"member {session}")

    async def _run(self, session: str) -> None:
        """Run a member's loop. It outlives errors: one member must not end the others."""
        try:
            while True:
                try:
                    await MemberLoop(session, self._hive, self._engine, self._log).run()
                    return
                except Exception:
                    log.exception("the loop of member %s failed; it starts again", session)
                    await self._log.clock.sleep(RETRY)
        finally:
            self._running.discard(session)

    async def _follow(self, seq: int) -> None:
        while True:
            try:
                async with aclosing(self._engine.follow(None, after=seq)) as events:
                    async for event in events:
                        self._heard(event)
                        seq = event.seq
            except HiveyardError as error:
                log.warning("the hive cannot follow the journal: %s", error.message)
                await self._log.clock.sleep(RETRY)

    def _heard(self, event: e.Event) -> None:
        if isinstance(event.body, e.MemberJoined):
            self._start(event.session)
        if isinstance(event.body, _FOR_DEADLINES):
            self._deadlines.changed()
        if isinstance(event.body, _FOR_MEMBERS):
            self._hive.bells.ring(event.session)


@asynccontextmanager
async def running(hive: Hive, engine: Engine, resources: Resources) -> AsyncIterator[Members]:
    """Run the hive while the block lasts. Leaving it changes nothing in the journal: the next daemon goes on."""
    hive.guest = engine.sessions.guest
    async with anyio.create_task_group() as group:
        await WakeLoop(hive, engine, resources.event_log, group).start()
        members = Members(hive, engine, resources)
        hive.control = ManagerControl(members, engine, resources.event_log)
        yield members
        group.cancel_scope.cancel()
