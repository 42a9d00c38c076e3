"""Automatic snapshots at the end of each turn, for sessions that asked for them. The latest few are kept."""

from __future__ import annotations

import contextlib
import logging
from functools import partial

from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError, OrchestrationError, SessionNotRunning
from hiveyard.core.events import Notice
from hiveyard.core.states import Activity
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.snapshots.service import Snapshots
from hiveyard.store import lineage, views

log = logging.getLogger(__name__)


class TurnSnapshots:
    """The automatic snapshots of all sessions. The oldest are removed when there are more than the settings allow."""

    def __init__(self, resources: Resources, sessions: Sessions, snapshots: Snapshots, group: TaskGroup) -> None:
        self._r = resources
        self._snapshots = snapshots
        self._group = group
        sessions.on_turn_over = self._turn_over

    def _turn_over(self, runner: SessionRunner) -> None:
        """Start a snapshot. No prompt is sent to the agent until it is finished."""
        runner.connection.hold()
        self._group.start_soon(self._after_turn, runner, name=f"snapshot of {runner.id}")

    async def _after_turn(self, runner: SessionRunner) -> None:
        await self._take(runner)
        # A session that the user paused meanwhile stays paused.
        async with runner.machine_lock:
            if await runner.retry_store(partial(self._activity, runner.id)) is not Activity.PAUSED:
                runner.connection.thaw()
        try:
            await self._remove_old(runner.id)
        except Exception:
            log.exception("session %s: its old snapshots are kept for now", runner.id)

    async def _take(self, runner: SessionRunner) -> None:
        try:
            assert runner.agent_runner is not None
            await self._snapshots.take(runner.id, f"turn-{runner.agent_runner.queue.ended}", automatic=True)
        except SessionNotRunning:
            log.info("session %s ended together with its turn: no snapshot was taken", runner.id)
        except HiveyardError as error:
            log.warning("session %s: no snapshot at the end of a turn: %s", runner.id, error.message)
            await self._record_failure(runner, error)
        except Exception as error:
            log.exception("session %s: no snapshot at the end of a turn", runner.id)
            await self._record_failure(runner, OrchestrationError(f"{type(error).__name__}: {error}"))

    async def _record_failure(self, runner: SessionRunner, error: HiveyardError) -> None:
        notice = Notice(message=f"no snapshot was taken at the end of the turn: {error.advice}", code=error.code)
        with contextlib.suppress(HiveyardError):
            await self._r.event_log.record(runner.id, notice)

    async def _activity(self, id: str) -> Activity | None:
        row = await self._r.event_log.read(lambda conn: views.find_session(conn, id))
        return None if row is None else row.activity

    async def _remove_old(self, id: str) -> None:
        """Remove automatic snapshots over the limit. One that a session is about to start from stays until the end of
        the next turn."""
        if not (limit := self._r.settings.turn_snapshots):
            return

        def automatic(conn: Connection) -> list[str]:
            rows = views.snapshots(conn, id)
            return [row.id for row in rows if lineage.point(conn, id, row.id).taken.by_itself]

        for snapshot in (await self._r.event_log.read(automatic))[:-limit]:
            try:
                await self._snapshots.remove(id, snapshot)
            except HiveyardError as error:
                log.info("the snapshot %s of session %s is kept for now: %s", snapshot, id, error.message)
