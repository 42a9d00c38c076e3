"""Rewind a session to a snapshot: files, conversation and, for a live snapshot, memory and processes.

The files are prepared first, then the journal records the rewind, then they replace the present ones. If the daemon is
killed in between, the session is as it was before or as it is to be.
"""

from __future__ import annotations

import logging

import anyio
from sqlalchemy import Connection

from hiveyard.core.commands import Command
from hiveyard.core.errors import Cancelled, SessionInUse, SessionNotRunning
from hiveyard.core.events import Failure, SessionRewound, TurnEnded, TurnStarted
from hiveyard.core.ports import SessionDisks
from hiveyard.core.ports import Snapshots as Live
from hiveyard.core.states import AT_WORK, Activity, Phase, TurnState
from hiveyard.engine.placement import capacity
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.turns.terminal_runner import TERMINAL
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.integrity import check_origin
from hiveyard.engine.workspace.session_files import copy_error, files_of
from hiveyard.store import journal, lineage, views
from hiveyard.store.lineage import Point
from hiveyard.store.views import SessionRow

log = logging.getLogger(__name__)
_REWOUND_FAILURE = Failure(code=Cancelled.code, message="the session was rewound")


class RewindService:
    """The service that rewinds sessions."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def rewind(self, id: str, ref: str, *, force: bool = False) -> None:
        """Rewind a session to a snapshot and continue from there; return when that is journaled.

        Raises NotFound, SessionInUse while a terminal is attached (unless `force`), SessionNotRunning for a session
        that is being prepared or cannot be resumed, SessionDamaged, NoMemory, NoSpace, and for a live snapshot the
        errors of `make_ready` of its provider. Then the session continues as before."""
        async with self._sessions.lock(id):
            await self._sessions.until_stopped(id)
            session = await self._sessions.row(id)
            point = await self._r.event_log.read(lambda conn: lineage.point(conn, id, ref))
            runner = self._sessions.find_runner(id)
            if runner is None:
                await self._resume_at(session, point)
                return
            async with runner.machine_lock:
                session = await self._sessions.row(id)
                await self._check(session, runner, force)
                await self._stage_files(session, point)
                with anyio.CancelScope(shield=True):
                    runner.scope.cancel()
                    await runner.over.wait()
                    await self._switch(session, point, detached=True)

    async def _resume_at(self, session: SessionRow, point: Point) -> None:
        if session.phase is not Phase.STOPPED:
            raise SessionNotRunning(f"{session.slug} is {session.phase}: it cannot be rewound")
        await self._r.event_log.read(lambda conn: self._check_capacity(conn, session, point))
        await self._stage_files(session, point)
        with anyio.CancelScope(shield=True):
            await self._switch(session, point, detached=False)

    def _check_capacity(self, conn: Connection, session: SessionRow, point: Point) -> None:
        settings, shape = self._r.settings, point.taken.shape if point.row.live else None
        asked = session.request.get("memory_mib") or settings.memory_mib
        capacity.check(conn, settings, shape.memory_mib if shape is not None else asked)

    async def _check(self, session: SessionRow, runner: SessionRunner, force: bool) -> None:
        await runner.wait_until_ready(session.phase)
        if session.phase is Phase.RUNNING and not runner.connection.frozen:
            await runner.wait_for(runner.started)
        if not runner.started.is_set():
            raise SessionNotRunning("its agent has not started yet", hint="try again in a moment; hv list")
        if force:
            return
        if session.activity is Activity.PAUSED:
            raise SessionInUse(
                f"{session.slug} is paused, so it is unknown whether a terminal is attached to it",
                hint=f"hv unpause {session.slug}, or hv rewind {session.slug} SNAPSHOT --force",
            )
        if clients := await self._attached(session):
            terminals = "a terminal is" if clients == 1 else f"{clients} terminals are"
            hint = f"hv rewind {session.slug} SNAPSHOT --force detaches them"
            raise SessionInUse(f"{terminals} attached to {session.slug}", hint=hint)

    async def _attached(self, session: SessionRow) -> int:
        """Return how many terminals are attached to the agent's."""
        command = Command(argv=("tmux", "list-clients", "-t", f"={TERMINAL}", "-F", "x"), cwd="/")
        async with self._sessions.guest(session.id) as guest:
            seen = await guest.run(command, timeout=30, limit=64 << 10)
        return seen.stdout.count(b"\n") if seen.ok else 0

    async def _stage_files(self, session: SessionRow, point: Point) -> None:
        """Prepare the snapshot's files beside the present ones, so that a fault in the snapshot is found before
        anything is replaced."""
        await check_origin(self._r, session)
        provider = self._r.providers[session.provider or ""]
        workspace = self._r.workspace(session.id)
        # An older Hiveyard kept the files of a VM as a copy of a directory; its memory cannot be used any more.
        old = isinstance(provider, SessionDisks) and snapshot_files.files_of(workspace, point.row.id).is_dir()
        if point.row.live and isinstance(provider, Live) and not old:
            await provider.make_ready(snapshot_files.provider_name(point.row.session, point.row.id))
        files = files_of(self._r, session)
        try:
            await files.stage(point.row.id, reserve=self._r.settings.reserve)
        except OSError as error:
            await files.unstage()
            raise copy_error(session.slug, error) from error

    async def _switch(self, session: SessionRow, point: Point, *, detached: bool) -> None:
        """Journal the rewind and start a runner, which carries it out. `detached` means that the session's runner was
        ended for this; if this fails, a runner is started again."""
        now = self._r.clock.now()

        def write(conn: Connection) -> None:
            if views.session(conn, session.id).phase is Phase.STOPPED:
                self._check_capacity(conn, session, point)
            _rewound(conn, session, point, now)

        try:
            await self._r.event_log.store.write(write)
        except BaseException:
            await files_of(self._r, session).unstage()
            if detached and (await self._sessions.row(session.id)).phase in AT_WORK:
                self._sessions.start(session.id)
            raise
        self._sessions.start(session.id)
        log.info("session %s is rewound to %s", session.id, point.row.name)


def _rewound(conn: Connection, session: SessionRow, point: Point, now: float) -> None:
    """Journal the rewind. Raises NotFound for a snapshot that was removed."""
    lineage.point(conn, session.id, point.row.id)
    turns = views.turns(conn, session.id)
    for turn in turns:
        if turn.state is not TurnState.ENDED:
            ended = TurnEnded(outcome="cancelled", failure=_REWOUND_FAILURE)
            journal.record(conn, session.id, ended, at=now, turn=turn.number)
    rewound = SessionRewound(snapshot=point.row.id, after_turn=point.row.after_turn)
    journal.record(conn, session.id, rewound, at=now)
    if point.row.live and point.taken.turn is not None:
        # The turn that was running at the snapshot continues under a new number: the old one has ended in the journal.
        number = max(turn.number for turn in turns) + 1
        journal.record(conn, session.id, TurnStarted(agent=session.agent), at=now, turn=number)
