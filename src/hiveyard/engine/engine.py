"""The engine: accepts tasks, runs them concurrently, and repairs at every start what a crash left.

It decides; it speaks no HTTP and prints nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.agents import by_name
from hiveyard.core.errors import MachineNotReady
from hiveyard.core.events import Event, SessionCreated, SessionStopped, TaskCancelled, TaskCreated
from hiveyard.core.states import AT_WORK, TaskState
from hiveyard.engine.archive.exporting import Exports
from hiveyard.engine.archive.importing import Imports
from hiveyard.engine.event_log import Listing
from hiveyard.engine.placement.image_stock import ImageStock
from hiveyard.engine.placement.machine_lease import MachineLease
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.access import SessionAccess
from hiveyard.engine.sessions.history import History
from hiveyard.engine.sessions.metadata import keep_metadata
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.sessions.steering import Steering
from hiveyard.engine.snapshots.automatic import TurnSnapshots
from hiveyard.engine.snapshots.compare import Comparisons
from hiveyard.engine.snapshots.fork import ForkService
from hiveyard.engine.snapshots.rewind import RewindService
from hiveyard.engine.snapshots.service import Snapshots
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.tasks.task_runner import TaskRunner
from hiveyard.engine.tasks.view import TaskView, task_view, task_views
from hiveyard.engine.turns.turn_spec import check_turn
from hiveyard.engine.upkeep.crash_cleanup import clean_up, remove_leftovers
from hiveyard.engine.upkeep.doctor import Check, run_checks
from hiveyard.engine.upkeep.housekeeping import Housekeeping
from hiveyard.engine.upkeep.reconciler import Reconciler
from hiveyard.engine.validation import validate, with_defaults
from hiveyard.engine.workspace.create import create_and_record
from hiveyard.engine.workspace.integrity import check_commits
from hiveyard.engine.workspace.result import ResultLocation, source
from hiveyard.engine.workspace.values import keep_values
from hiveyard.kit.names import new_id, slug
from hiveyard.store import journal, names, views

log = logging.getLogger(__name__)
OPEN = (TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING)


class Engine:
    """The interface of the engine for the API. Made by `running`."""

    def __init__(self, resources: Resources, group: TaskGroup) -> None:
        self._r = resources
        self._group = group
        self._creating = anyio.Lock()
        self.sessions = Sessions(resources, group)
        self.access = SessionAccess(resources, self.sessions)
        self.steering = Steering(resources, self.sessions)
        self.history = History(resources)
        self.snapshots = Snapshots(resources, self.sessions, group)
        self.turn_snapshots = TurnSnapshots(resources, self.sessions, self.snapshots, group)
        self.forks = ForkService(resources, self.sessions, self.snapshots, group)
        self.rewinds = RewindService(resources, self.sessions)
        self.comparisons = Comparisons(resources, self.sessions)
        self.exports = Exports(resources, self.sessions)
        self.imports = Imports(resources)
        self.housekeeping = Housekeeping(resources)
        self.reconciler = Reconciler(resources, self.sessions.lock)
        self.pid = os.getpid()
        self.on_removed: Callable[[str], None] = lambda id: None

    @property
    def images(self) -> ImageStock:
        return self._r.images

    async def remove_image(self, ref: str) -> str:
        """Remove an image, as `ImageStock.remove`. Also raises MachineNotReady while a live snapshot depends on it."""
        image = self.images.built(ref).id
        if dependents := await self.snapshots.live_snapshots_of(image):
            name, _, session = dependents[0].partition(" of ")
            raise MachineNotReady(
                f"the image {image} is used by snapshots: {', '.join(dependents)}",
                hint=f"hv snapshots {session} --remove {name}",
            )
        return await self.images.remove(image)

    @property
    def running(self) -> int:
        """Return the number of tasks that are running or wait for a place."""
        return sum(isinstance(runner, TaskRunner) for runner in self.sessions.runners)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def submit(self, request: TaskRequest) -> str:
        """Accept a task; return its id once it is journaled and started.

        Raises BadInput, UnknownAgent, NoSuchImage, RepositoryError or NoMemory for a request that cannot work: then no
        task was created.
        """
        request = with_defaults(request.checked(), self._r)
        if (existing := await self._existing(request)) is not None:
            return existing
        await validate(request, self._r)
        check_turn(request, by_name(request.agent or self._r.settings.agent).process)
        async with self._creating:
            if (existing := await self._existing(request)) is not None:
                return existing
            id = request.id or new_id()
            # Shielded, in case the caller goes away: a task that is journaled is also started.
            with anyio.CancelScope(shield=True):
                await self._create(id, request)
                self._attend(id)
        return id

    async def _existing(self, request: TaskRequest) -> str | None:
        """Return the task that was created before with the same id and the same request."""
        id = request.id
        if id is None or (session := await self._r.event_log.read(lambda conn: views.find_session(conn, id))) is None:
            return None
        task = await self._r.event_log.read(lambda conn: views.find_task(conn, id))
        request.check_same(None if task is None else task.request, "task" if task else f"session ({session.slug})")
        return id

    async def _create(self, id: str, request: TaskRequest) -> None:
        """Create the session's directory, then journal the task."""
        name, agent, now = slug(request.prompt), request.agent or self._r.settings.agent, self._r.clock.now()
        workspace = self._r.workspace(id)

        def make() -> None:
            workspace.create(
                id=id, slug=name, repo=request.repo, agent=agent, prompt=request.prompt, at=now, tape=request.tape
            )
            keep_values(workspace, env=request.env, mcp=request.mcp)

        def write(conn: Connection) -> None:
            free = names.free_slug(conn, name)
            journal.record(conn, id, TaskCreated(slug=free, request=request.as_json()), at=now)
            journal.record(conn, id, SessionCreated(slug=free, repo=request.repo, agent=agent), at=now)

        await create_and_record(self._r, workspace.root, make, write)

    def _attend(self, id: str, *, cancelled: bool = False) -> None:
        runner = TaskRunner(id, self._r)
        if cancelled:
            runner.ask_to_stop()
        self.sessions.attend(runner)

    async def cancel(self, id: str) -> None:
        """Ask for a task's end; return when that is journaled. Succeeds for a task that is over."""
        task = await self._r.event_log.read(lambda conn: views.task(conn, id))
        if not task.state.over:
            await self.sessions.ask_to_stop(id)

    async def remove(self, id: str, *, force: bool) -> None:
        """Remove a task or session and all that belongs to it. Raises MachineNotReady for one that runs, unless
        `force`; NotFound for one that was removed meanwhile."""
        async with self.sessions.lock(id):
            await self._remove(id, force)

    async def _remove(self, id: str, force: bool) -> None:
        if not force:
            await self._r.event_log.read(lambda conn: _check_over(conn, id))
        await self.sessions.detach(id)
        # Journal the end first: if the rest is interrupted, no daemon continues the task, and rm can be repeated.
        now = self._r.clock.now()
        await self._r.event_log.store.write(lambda conn: _close(conn, id, now))
        for row in await self._r.event_log.read(lambda conn: views.machines(conn, live_only=False, session=id)):
            await MachineLease(id, self._r.providers[row.provider], None, self._r.event_log).release()
        await self.snapshots.remove_all(id)
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(self._r.door_path(id), ignore_errors=True))
        await anyio.to_thread.run_sync(self._r.ssh_keys.forget, id)
        workspace = self._r.workspace(id)
        await anyio.to_thread.run_sync(workspace.mark_unfinished)
        await self._r.event_log.store.write(lambda conn: journal.forget(conn, id))
        await anyio.to_thread.run_sync(workspace.remove)
        self.on_removed(id)

    # --- queries -----------------------------------------------------------------------------------------------------

    async def resolve(self, ref: str) -> str:
        """Return the id for a name, an id or the start of one. Raises NotFound, Ambiguous."""
        return await self._r.event_log.read(lambda conn: names.resolve(conn, ref))

    async def report(self, id: str) -> TaskView:
        waiting = self._r.admission.waiting()
        return await self._r.event_log.read(lambda conn: task_view(conn, id, self._r.workspace, waiting))

    async def reports(self, *, live_only: bool, limit: int | None = None) -> Listing[TaskView]:
        """Return tasks, newest first, in short: prompts are cut, and `timings` has only the total."""

        waiting = self._r.admission.waiting()

        def read(conn: Connection) -> list[TaskView]:
            tasks = views.tasks(conn, states=OPEN if live_only else None, limit=limit)
            return task_views(conn, tasks, self._r.workspace, waiting)

        return await self._r.event_log.read_list(read)

    async def events(self, id: str | None, *, after: int, limit: int) -> list[Event]:
        """Return the next events of a task or session, or of all (None)."""
        return await self._r.event_log.read(lambda conn: journal.events(conn, session=id, after=after, limit=limit))

    def follow(self, id: str | None, *, after: int) -> AsyncGenerator[Event, None]:
        """Yield the events of a task or session, or of all (None), after a sequence number, then new ones as they
        come."""
        return self._r.event_log.store.follow(after=after, session=id)

    async def is_over(self, id: str) -> bool:
        """Return whether no event will follow: a task is over, or a session is not running."""

        def read(conn: Connection) -> bool:
            task = views.find_task(conn, id)
            return (task is None or task.state.over) and views.session(conn, id).phase not in AT_WORK

        return await self._r.event_log.read(read)

    async def source(self, id: str) -> ResultLocation:
        """Return the location of a task's or session's result. Raises NotFound, SessionDamaged."""
        await check_commits(self._r, await self._r.event_log.read(lambda conn: views.session(conn, id)))
        return await self._r.event_log.read(lambda conn: source(conn, id, self._r.workspace(id)))

    async def doctor(self) -> list[Check]:
        return await run_checks(self._r)

    # --- recovery ----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Continue every task that is not over, and remove what belongs to no task."""
        leftovers = await clean_up(self._r, list(self._r.sessions.glob("*")))
        tasks = await self._r.event_log.read(lambda conn: views.tasks(conn, states=OPEN))
        for task in tasks:
            self._attend(task.id, cancelled=task.cancel_asked_at is not None)
        await self.sessions.recover()
        await self.snapshots.recover()
        self._group.start_soon(remove_leftovers, self.reconciler, leftovers, name="sweep")


def _check_over(conn: Connection, id: str) -> None:
    task = views.find_task(conn, id)
    if task is not None and not task.state.over:
        raise MachineNotReady(
            f"{task.slug} is {task.state.value}", hint=f"hv cancel {task.slug}, or hv rm --force {task.slug}"
        )
    session = views.session(conn, id)
    if session.phase in AT_WORK:
        raise MachineNotReady(
            f"{session.slug} is {session.phase.value}", hint=f"hv stop {session.slug}, or hv rm --force {session.slug}"
        )


def _close(conn: Connection, id: str, at: float) -> None:
    """Journal the end of a task or session that was detached: only one that is over can be removed."""
    task = views.find_task(conn, id)
    if task is not None and not task.state.over:
        journal.record(conn, id, TaskCancelled(reason="removed"), at=at)
    if views.session(conn, id).phase in AT_WORK:
        journal.record(conn, id, SessionStopped(reason="removed"), at=at)


@asynccontextmanager
async def running(resources: Resources) -> AsyncIterator[Engine]:
    """Run the engine. Leaving the block detaches from running tasks and does not end them."""
    async with anyio.create_task_group() as group:
        engine = Engine(resources, group)
        await engine.recover()
        group.start_soon(resources.admission.run, name="admission")
        group.start_soon(engine.reconciler.keep_running, name="reconcile")
        group.start_soon(keep_metadata, resources, name="meta.json of sessions")
        await engine.sessions.wait_for_machines()
        yield engine
        group.cancel_scope.cancel()
