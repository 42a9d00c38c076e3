"""Let tasks and sessions begin when there is a place for them: one line for all, first come, first served.

A place is memory for the machine and, for a task, one of the slots. It is taken in the transaction that journals that
the session is being prepared, before its repository is copied. One that does not fit yet is passed by later ones that
do, for at most ten minutes; then all wait until it fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError, IllegalMove
from hiveyard.core.events import AnyBody, MachineEvent, Notice, SessionEvent, SessionPreparing, TaskEvent
from hiveyard.core.states import Phase
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.placement.capacity import Capacity, memory
from hiveyard.engine.settings import EngineSettings
from hiveyard.store import journal, views
from hiveyard.store.views import SessionRow

PATIENCE = 600.0
"""Seconds for which one that does not fit may be passed by later ones."""


@dataclass(kw_only=True, eq=False)
class _Waiting:
    """One in the line. `mib` is the memory of its machine; `placed` are the events that are journaled with its place;
    `reason` is what it waits for."""

    id: str
    since: float
    mib: int
    is_task: bool
    placed: Sequence[AnyBody]
    reason: str = ""
    error: HiveyardError | None = None
    over: anyio.Event = field(default_factory=anyio.Event)


class Admission:
    """The line of those that wait for a place. `run` gives places out."""

    def __init__(self, event_log: EventLog, settings: EngineSettings) -> None:
        self._event_log = event_log
        self._settings = settings
        self._line: list[_Waiting] = []
        self._changed = anyio.Event()

    async def claim(self, session: SessionRow, since: float, placed: Sequence[AnyBody], *, is_task: bool) -> None:
        """Wait for a place, which is journaled together with `placed` when this returns. `since`, the time of the
        request, decides the position in the line. Raises StoreUnusable."""
        mib = memory(session.request, self._settings)
        waiting = _Waiting(id=session.id, since=since, mib=mib, is_task=is_task, placed=placed)
        self._line.append(waiting)
        self._line.sort(key=lambda one: (one.since, one.id))
        try:
            self._changed.set()
            await waiting.over.wait()
        finally:
            if waiting in self._line:
                self._line.remove(waiting)
        if waiting.error is not None:
            raise waiting.error

    def waiting(self) -> Mapping[str, str]:
        """Return the position in the line and what is waited for, of each that waits."""
        return {one.id: f"number {at} in line: {one.reason}" for at, one in enumerate(self._line, 1) if one.reason}

    async def run(self) -> None:
        """Give out places as they become free, until cancelled."""
        seen = await self._event_log.read(journal.last_seq)
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch_journal, seen, name="watch for free places")
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                if self._line:
                    await self._give()

    async def _watch_journal(self, seen: int) -> None:
        async with aclosing(self._event_log.store.follow_pages(after=seen)) as pages:
            async for page in pages:
                if any(isinstance(event.body, MachineEvent | SessionEvent | TaskEvent) for event in page):
                    self._changed.set()

    async def _give(self) -> None:
        """Give places to all for whom there is one, in one transaction."""
        line, now = list(self._line), self._event_log.clock.now()
        try:
            served = await self._event_log.store.write(lambda conn: self._served(conn, line, now))
        except HiveyardError as error:  # the journal cannot be written: each of them tries again later
            for waiting in line:
                waiting.error = error
            served = line
        for waiting in served:
            waiting.over.set()
            if waiting in self._line:
                self._line.remove(waiting)

    def _served(self, conn: Connection, line: Sequence[_Waiting], now: float) -> list[_Waiting]:
        """Take places in the order of the line; return those that wait no longer."""
        places, served = Capacity.taken(conn, self._settings), []
        for waiting in line:
            if reason := self._obstacle(places, waiting):
                self._keep_waiting(conn, waiting, reason, now)
                if not places.has_memory(waiting.mib) and now - waiting.since > PATIENCE:
                    break
            elif self._place(conn, waiting, now):
                places.take(waiting.mib, is_task=waiting.is_task)
                served.append(waiting)
            else:
                served.append(waiting)
        return served

    def _obstacle(self, places: Capacity, waiting: _Waiting) -> str:
        """Return what there is no place for, in words; an empty text if there is a place."""
        if waiting.is_task and not places.has_slot():
            return f"waits for one of the {self._settings.max_tasks} places for tasks ([engine] max_tasks)"
        if not places.has_memory(waiting.mib):
            return f"waits until a machine of {waiting.mib} MiB fits into memory beside the others; hv stop frees some"
        return ""

    def _place(self, conn: Connection, waiting: _Waiting, now: float) -> bool:
        """Journal that one has its place; return whether it took one. One that cannot be served does not keep the
        others waiting."""
        session = views.find_session(conn, waiting.id)
        if session is None or session.phase not in (Phase.CREATED, Phase.STOPPED):
            return False  # it was removed meanwhile, or its place was journaled before
        try:
            # The last one cannot be refused, so that either all are journaled or none.
            for body in (*waiting.placed, SessionPreparing()):
                journal.record(conn, waiting.id, body, at=now)
        except IllegalMove as error:
            waiting.error = error
            return False
        return True

    def _keep_waiting(self, conn: Connection, waiting: _Waiting, reason: str, now: float) -> None:
        """Journal once what it waits for."""
        if not waiting.reason and views.find_session(conn, waiting.id) is not None:
            journal.record(conn, waiting.id, Notice(message=reason), at=now)
        waiting.reason = reason
