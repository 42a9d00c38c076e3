"""Take, list and remove snapshots of sessions. Where the provider can, a snapshot contains memory and processes;
elsewhere it contains the files and the agent's conversation."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.core.errors import (
    BadInput,
    CannotFreeze,
    CannotKeepMemory,
    HiveyardError,
    MachineNotReady,
)
from hiveyard.core.events import Notice, SessionForked, SnapshotRemoved, SnapshotTaken
from hiveyard.core.ports import Pauses, Provider, SessionDisks, SnapshotStats
from hiveyard.core.ports import Snapshots as Live
from hiveyard.core.states import AT_WORK, Activity
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.service import Sessions, require_started
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.turns.agent_runner import AgentRunner
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.session_files import copy_error, files_of
from hiveyard.kit.copying import Copied
from hiveyard.kit.names import new_id
from hiveyard.store import journal, lineage, views
from hiveyard.store.lineage import Point
from hiveyard.store.views import SessionRow, SnapshotRow

log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?\Z")


class SnapshotView(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot. If `live`, it contains memory and processes, otherwise only the files and the conversation. `turn`
    was running, `after_turn` was the last that had ended. `seconds` is how long the machine was paused, `size` the
    bytes on disk that are not shared."""

    id: str
    name: str
    session: str
    live: bool
    turn: int | None
    after_turn: int
    seconds: float
    size: int
    created_at: float


class Snapshots:
    """The service that takes, lists and removes snapshots."""

    def __init__(self, resources: Resources, sessions: Sessions, group: TaskGroup) -> None:
        self._r = resources
        self._sessions = sessions
        self._group = group

    # --- take --------------------------------------------------------------------------------------------------------

    async def take(
        self, id: str, name: str | None = None, *, temporary: bool = False, automatic: bool = False
    ) -> Point:
        """Take a snapshot of a running session; the session continues afterwards, and a paused one stays paused. If its
        memory cannot be saved, the snapshot contains the files and the conversation, and a notice says so. A
        `temporary` snapshot is only for a fork; an `automatic` one was taken at the end of a turn.

        Raises SessionNotRunning, BadInput for a name that is taken or invalid, NoSpace. Then nothing of the snapshot
        is left, and the session continues."""
        if name is not None and not _NAME.match(name):
            raise BadInput(f"{name[:80]!r} is not a valid snapshot name: use 1 to 40 of a-z, 0-9, . and -")
        runner = await self._sessions.runner(id)
        async with runner.machine_lock:
            session = await self._sessions.row(id)
            agent_runner = await require_started(session, runner)
            known = await self._r.event_log.read(lambda conn: views.snapshots(conn, id))
            live = isinstance(self._provider(session), Live)
            asked = SnapshotTaken(
                snapshot=new_id(), name=_free_name(name, known), live=live, passing=temporary, by_itself=automatic
            )
            try:
                return await self._take(session, runner, agent_runner, asked, known)
            except CannotKeepMemory as error:
                asked = msgspec.structs.replace(asked, live=False)
                return await self._take(
                    session, runner, agent_runner, asked, known, f"the memory was not saved: {error.advice}"
                )

    async def _take(
        self,
        session: SessionRow,
        runner: SessionRunner,
        agent_runner: AgentRunner,
        asked: SnapshotTaken,
        known: Sequence[SnapshotRow],
        lacking: str = "",
    ) -> Point:
        async with self._held_still(session, runner, live=asked.live) as problem:
            moved = f"{problem}: the files were copied while the agent was running" if problem else ""
            return await self._keep(session, agent_runner, asked, known, [why for why in (lacking, moved) if why])

    @asynccontextmanager
    async def _held_still(self, session: SessionRow, runner: SessionRunner, *, live: bool) -> AsyncIterator[str]:
        """Disconnect from the session's machine and pause it for the block. Yield "", or the reason why it could not be
        paused. For a live snapshot the provider pauses the machine itself, for a shorter time."""
        provider, machine = self._provider(session), machine_name(session.id)
        paused = session.activity is Activity.PAUSED
        try:
            await runner.connection.freeze()
            itself = live or isinstance(provider, SessionDisks)
            yield "" if paused or itself else await _pause(provider, machine)
        finally:
            if not paused:
                with anyio.CancelScope(shield=True):
                    try:
                        if isinstance(provider, Pauses) and not live:
                            await provider.resume(machine)
                    finally:
                        runner.connection.thaw()

    async def _keep(
        self,
        session: SessionRow,
        agent_runner: AgentRunner,
        asked: SnapshotTaken,
        known: Sequence[SnapshotRow],
        notices: Sequence[str],
    ) -> Point:
        provider, snapshot = self._provider(session), asked.snapshot
        try:
            frozen, copied = await self._frozen(session, asked, known)
            machine = await provider.get(machine_name(session.id))
            taken = msgspec.structs.replace(
                asked,
                seconds=frozen.seconds,
                size=frozen.size + copied.written,
                after_turn=agent_runner.queue.ended,
                turn=agent_runner.queue.running,
                conversation=agent_runner.queue.conversation or "",
                image=machine.image,
                shape=machine.shape,
            )
            with anyio.CancelScope(shield=True):
                await self._r.event_log.record(session.id, *_notices(notices, copied), taken)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._drop(session, provider, snapshot)
            raise
        return await self._r.event_log.read(lambda conn: lineage.point(conn, session.id, snapshot))

    async def _frozen(
        self, session: SessionRow, asked: SnapshotTaken, known: Sequence[SnapshotRow]
    ) -> tuple[SnapshotStats, Copied]:
        """Save the machine, for a live snapshot, and the session's files. Return the statistics of both."""
        provider, clock, copies = self._provider(session), self._r.clock, list[Copied]()
        files, former = files_of(self._r, session), known[-1].id if known else None

        async def save() -> None:
            try:
                copies.append(await files.save(asked.snapshot, former, reserve=self._r.settings.reserve))
            except OSError as error:
                raise copy_error(session.slug, error) from error

        machine, kept = machine_name(session.id), snapshot_files.provider_name(session.id, asked.snapshot)
        if asked.live:
            assert isinstance(provider, Live)
            frozen = await provider.snapshot(machine, kept, save, temporary=asked.passing)
        elif isinstance(provider, SessionDisks):
            frozen = await provider.snapshot_disk(machine, kept)
            await save()
        else:
            begun = clock.monotonic()
            await save()
            frozen = SnapshotStats(clock.monotonic() - begun, 0)
        (copied,) = copies
        return frozen, copied

    # --- list and remove ---------------------------------------------------------------------------------------------

    async def list(self, id: str) -> list[SnapshotView]:
        """Return a session's snapshots, oldest first, without the temporary ones of forks."""

        def read(conn: Connection) -> list[SnapshotView]:
            found = [lineage.point(conn, id, row.id) for row in views.snapshots(conn, id)]
            return [view(point) for point in found if not point.taken.passing]

        await self._sessions.row(id)
        return await self._r.event_log.read(read)

    async def remove(self, id: str, ref: str) -> str:
        """Remove a snapshot; return its id. Raises NotFound, MachineNotReady while a session is about to start from
        it."""
        async with self._sessions.lock(id):
            session, now = await self._sessions.row(id), self._r.clock.now()
            with anyio.CancelScope(shield=True):
                snapshot = await self._r.event_log.store.write(lambda conn: _removed(conn, id, ref, now))
                await self._drop(session, self._provider(session), snapshot)
        return snapshot

    async def remove_all(self, id: str) -> None:
        """Remove all snapshots of a session that is being removed. Wait first for the sessions that are about to start
        from them."""
        session = await self._r.event_log.read(lambda conn: views.find_session(conn, id))
        for row in await self._r.event_log.read(lambda conn: views.snapshots(conn, id)):
            assert session is not None
            for child in await self._r.event_log.read(partial(sessions_starting_at, snapshot=row.id)):
                if (runner := self._sessions.find_runner(child)) is not None:
                    await runner.wait_for(runner.started)
            await self._drop(session, self._provider(session), row.id)

    async def remove_after_fork(self, point: Point, runners: Sequence[SessionRunner]) -> None:
        """Remove a temporary snapshot once the fork's children have started. If that fails, the next daemon removes
        it."""
        for runner in runners:
            await runner.wait_for(runner.started)
        try:
            await self.remove(point.row.session, point.row.id)
        except HiveyardError as error:
            log.info("the temporary snapshot %s of a fork was not removed: %s", point.row.id, error.message)
        except Exception:
            log.exception("the temporary snapshot %s of a fork was not removed", point.row.id)

    async def _drop(self, session: SessionRow, provider: Provider, snapshot: str) -> None:
        """Remove a snapshot's memory and files. If that fails, the next daemon removes them."""
        try:
            if isinstance(provider, Live) and not provider.capabilities.remote:
                await provider.remove_snapshot(snapshot_files.provider_name(session.id, snapshot))
        except (HiveyardError, OSError) as error:
            log.warning("snapshot %s of %s could not be removed: %s", snapshot, session.id, error)
        await files_of(self._r, session).drop(snapshot)

    async def live_snapshots_of(self, image: str) -> Sequence[str]:
        """Return the live snapshots of machines of an image, which are useless without it, as "NAME of SESSION"."""

        def read(conn: Connection) -> Sequence[str]:
            found = [(row, lineage.point(conn, row.session, row.id)) for row in views.snapshots(conn) if row.live]
            dependents = [row for row, point in found if point.taken.image == image]
            return [f"{row.name} of {views.session(conn, row.session).slug}" for row in dependents]

        return await self._r.event_log.read(read)

    # --- recovery ----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Find snapshots that a killed daemon left without a record, and temporary ones of finished forks; remove them
        in the background."""

        def read(conn: Connection) -> tuple[dict[str, set[str]], list[Point]]:
            known: dict[str, set[str]] = {}
            for row in views.snapshots(conn):
                known.setdefault(row.session, set()).add(row.id)
            temporary = [lineage.point(conn, row.session, row.id) for row in views.snapshots(conn)]
            return known, [point for point in temporary if point.taken.passing]

        known, temporary = await self._r.event_log.read(read)
        workspaces = [self._r.workspace(root.name) for root in self._r.sessions.glob("*")]
        remains = {one: snapshot_files.remains(one, known.get(one.root.name, set())) for one in workspaces}
        live = {snapshot_files.provider_name(session, row) for session, rows in known.items() for row in rows}
        # Remote providers run no sessions, and starting the daemon must not wait for a network.
        for provider in self._r.providers.values():
            if isinstance(provider, Live) and not provider.capabilities.remote:
                for name in sorted(await _names(provider) - live):
                    self._group.start_soon(_remove, provider, name, name=f"remove {name}")
        for workspace, left in remains.items():
            for path in left:
                log.info("removing the leftover snapshot %s", path)
                await anyio.to_thread.run_sync(snapshot_files.drop, workspace, path.name.removeprefix(".half-"))
        for point in temporary:
            children = await self._r.event_log.read(partial(sessions_starting_at, snapshot=point.row.id))
            runners = [runner for child in children if (runner := self._sessions.find_runner(child)) is not None]
            self._group.start_soon(self.remove_after_fork, point, runners, name=f"remove {point.row.id}")

    def _provider(self, session: SessionRow) -> Provider:
        assert session.provider is not None
        return self._r.providers[session.provider]


def view(point: Point) -> SnapshotView:
    row, taken = point.row, point.taken
    return SnapshotView(
        id=row.id,
        name=row.name,
        session=row.session,
        live=row.live,
        turn=taken.turn,
        after_turn=row.after_turn,
        seconds=row.seconds,
        size=row.size,
        created_at=row.created_at,
    )


def sessions_starting_at(conn: Connection, snapshot: str) -> list[str]:
    """Return the sessions that have yet to start from a snapshot and still need it. A child of a snapshot without
    memory does not: its files were copied when it was created."""
    found = []
    for row in views.sessions(conn, phases=AT_WORK):
        begin = lineage.pending_start(conn, row.id) if row.request is not None else None
        if begin is None or begin.snapshot != snapshot or (isinstance(begin, SessionForked) and not begin.live):
            continue
        found.append(row.id)
    return found


def _removed(conn: Connection, session: str, ref: str, at: float) -> str:
    """Journal that a snapshot is removed; return its id. Raises MachineNotReady while a session is about to start from
    it."""
    point = lineage.point(conn, session, ref)
    if waiting := sessions_starting_at(conn, point.row.id):
        raise MachineNotReady(
            f"sessions are about to start from {point.row.name}: {', '.join(waiting)}", hint="hv list"
        )
    journal.record(conn, session, SnapshotRemoved(snapshot=point.row.id), at=at)
    return point.row.id


async def _pause(provider: Provider, machine: str) -> str:
    """Pause a machine. Return "", or the reason why it cannot be paused."""
    if not isinstance(provider, Pauses):
        return f"the provider {provider.name} cannot pause a machine"
    try:
        await provider.pause(machine)
    except CannotFreeze as error:
        return error.message
    return ""


def _notices(notices: Sequence[str], copied: Copied) -> list[Notice]:
    left_out = [f"{copied.left_out} sockets and devices are not in the snapshot"] if copied.left_out else []
    return [Notice(message=message) for message in (*notices, *left_out)]


def _free_name(name: str | None, known: Sequence[SnapshotRow]) -> str:
    taken = {row.name for row in known}
    if name is None:
        return next(name for number in range(1, len(known) + 2) if (name := f"s{number}") not in taken)
    if name in taken and not name.startswith("turn-"):
        raise BadInput(f"there is already a snapshot called {name}", hint="choose another --name")
    return name


async def _names(provider: Live) -> set[str]:
    try:
        return await provider.snapshots()
    except HiveyardError as error:
        log.info("a provider could not list its snapshots: %s", error.message)
        return set()


async def _remove(provider: Live, name: str) -> None:
    try:
        await provider.remove_snapshot(name)
    except (HiveyardError, OSError) as error:
        log.warning("the leftover snapshot %s could not be removed: %s", name, error)
