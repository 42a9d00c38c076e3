"""Run a session in one machine: from the copy of the repository to the end of the agent's program.

Each step looks at the journal and does only what is missing. So the same steps start a session, continue one that a
killed daemon left, and resume one that was stopped. Nobody needs to be attached to it. A task is run by the same steps;
engine/tasks/task_runner.py adds its one turn and its end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import ClassVar, TypeVar

import anyio
import anyio.to_thread

from hiveyard.core.errors import (
    BudgetSpent,
    Cancelled,
    DiskReserve,
    HiveyardError,
    MachineLost,
    OrchestrationError,
    SessionNotRunning,
    StoreUnusable,
)
from hiveyard.core.events import (
    AnyBody,
    Failure,
    Notice,
    SessionFailed,
    SessionForked,
    SessionPlaced,
    SessionRunning,
    SessionStopAsked,
    SessionStopped,
)
from hiveyard.core.ports import Guest, Pauses, Provider, SessionDisks
from hiveyard.core.states import Activity, Phase
from hiveyard.door.door import Door
from hiveyard.engine.event_log import Entry
from hiveyard.engine.placement.machine_lease import MachineLease
from hiveyard.engine.placement.provider_choice import Choice, choose
from hiveyard.engine.placement.provisioner import Provisioner
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.collector import Collector
from hiveyard.engine.sessions.guest_connection import RETRY_DELAY, GuestConnection
from hiveyard.engine.sessions.ports import SessionPorts, open_session_ports
from hiveyard.engine.sessions.reading import reading_machine
from hiveyard.engine.sessions.request import SpawnRequest, session_request
from hiveyard.engine.sessions.session_agent import session_agent
from hiveyard.engine.sessions.start_point import StartPoint, rename_branch
from hiveyard.engine.turns.agent_runner import GRACE, AgentRunner
from hiveyard.engine.turns.disk_watch import watch_disk
from hiveyard.engine.turns.session_door import open_session_door
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.turn_queue import TurnQueue
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.engine.workspace.session_files import files_of
from hiveyard.kit.group import first, together
from hiveyard.store import lineage, views
from hiveyard.store.views import SessionRow

T = TypeVar("T")
log = logging.getLogger(__name__)
EXIT_TIMEOUT = 15.0
"""Seconds to wait for the output of an ended program to end: the guest can hold it back."""
DISK_FULL_TIMEOUT = 15.0
"""Seconds for the same when the disk fills up."""


class SessionRunner:
    """A running session.

    `stop` is asked to end its machine; `over` is set when nothing works on the session any more; cancelling `scope`
    detaches from it, as a dying daemon would. `agent_runner` exists once the machine is ready (`ready` is set);
    `started` is set once the journal says that the agent's program runs. `connection` leaves the guest while the
    machine is paused; `machine_lock` is held while the machine is paused, unpaused or replaced. `collector` brings out
    the work; `waits` while it waits in line for a place. `on_turn_over` is
    called at the end of each turn and must return at once. It has many methods because each step of a run is one."""

    stop_word: ClassVar[str] = "stopped"
    """Why it ends when a user asked for that."""
    only_turn: ClassVar[int | None] = None
    """The turn of all requests to models, if there is only one."""
    lost: ClassVar[tuple[type[HiveyardError], ...]] = (MachineLost,)
    """The errors after which the machine cannot be used any more."""

    def __init__(
        self, id: str, resources: Resources, on_turn_over: Callable[[SessionRunner], None] = lambda runner: None
    ) -> None:
        self.id = id
        self.stop = Stop()
        self.over = anyio.Event()
        self.ready = anyio.Event()
        self.started = anyio.Event()
        self.machine_lock = anyio.Lock()
        self.connection = GuestConnection(resources.clock)
        self.waits = False
        self.door: Door | None = None
        self._on_turn_over = on_turn_over
        self.scope = anyio.CancelScope()
        self.agent_runner: AgentRunner | None = None
        self.ports: SessionPorts | None = None
        self.lease: MachineLease | None = None
        self._files_ready = False
        self._held: AgentRunner | None = None
        self._r = resources
        self._event_log = resources.event_log
        self._workspace = resources.workspace(id)
        self.collector = Collector(id, resources, self.stop, self.only_turn, self.lost)

    async def run(self) -> None:
        """Run the session until it stops, and journal the reason. Raises only for cancellation: then the daemon ends,
        and the next one continues the session."""
        try:
            ends = await self.retry_store(self._run_to_end)
        finally:
            self.connection.close()
        if ends:
            await self.retry_store(lambda: self._event_log.record(self.id, *ends))

    def stop_asked(self, reason: str) -> AnyBody:
        """Return the event of somebody who asks for its end."""
        return SessionStopAsked(reason=reason)

    def ask_to_stop(self, reason: str = "") -> None:
        """End the session, as somebody asked for."""
        self.stop.request(Cancelled(reason or self.stop_word))

    async def retry_store(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a step. Retry it for as long as the journal cannot be written."""
        while True:
            try:
                return await step()
            except StoreUnusable as error:
                log.error("%s waits for the journal: %s", self.id, error.message)
                await self._r.clock.sleep(RETRY_DELAY)

    async def _run_to_end(self) -> list[AnyBody]:
        """Run the session; return the events that record its end. Raises StoreUnusable."""
        try:
            return await self._conclude(await self._work())
        except Exception as raised:
            error = first(raised)
            if isinstance(error, StoreUnusable):
                raise error from raised
            if not isinstance(error, HiveyardError):
                log.exception("session %s", self.id)
                error = OrchestrationError(f"{type(error).__name__}: {error}", hint="see the daemon's log")
            return await self._fail(error)

    # --- start -------------------------------------------------------------------------------------------------------

    async def _work(self) -> str:
        """Start or continue the session and run it to its end; return the reason for the end."""
        session = await self._session()
        # A stop does not interrupt this: a session that is stopped right after a rewind has the snapshot's files.
        start = await self._prepare_files(session)
        request = session_request(session)
        async with open_session_door(
            self._r, session, request, turn=self.only_turn, on_budget=self._budget_spent
        ) as self.door:
            await self.apply_budget()  # it may have changed while there was no door
            with nullcontext() if session.phase is Phase.RUNNING else self.stop.cancel_on_request():
                lease = self.lease = await self._prepare_machine(session, request, start)
            agent_runner = self._held = await self._make_agent_runner(request, lease, self.door)
            try:
                if session.phase is Phase.RUNNING:
                    await self._reconnect(session, lease)
                async with self._open_ports(session, lease, request) as self.ports:
                    self.agent_runner = agent_runner
                    self.ready.set()
                    return await self.connection.keep(lease, partial(self._run_agent, agent_runner=agent_runner))
            except Exception as raised:
                if isinstance(error := first(raised), self.lost):
                    await self._rescue(error, lease, agent_runner)
                raise

    async def _prepare_files(self, session: SessionRow) -> StartPoint:
        """Return the session's start point; its files are restored when this returns."""
        start = await self._event_log.read(lambda conn: StartPoint.of(conn, self.id))
        if start.rewound is not None and not self._files_ready:
            await self._release(session)
            await start.restore_files(files_of(self._r, session))
        self._files_ready = True
        return start

    async def _prepare_machine(self, session: SessionRow, request: SpawnRequest, start: StartPoint) -> MachineLease:
        """Make the session's machine ready. A new daemon creates nothing for a running session: a failure, for instance
        a missing image, would end a machine that is alive."""
        if session.phase is Phase.RUNNING:
            assert session.provider is not None
            return MachineLease(self.id, self._r.providers[session.provider], None, self._event_log)
        provider = await self._place(session, request)
        provisioner = Provisioner(self.id, request, self._r, image=start.image, shape=start.shape)
        await provisioner.take()
        image = await provisioner.image(provider)
        with self.stop.cancel_on_request():
            await provisioner.check_out()
        lease = provisioner.lease(provider, image)
        async with self._event_log.phase(self.id, "boot"):
            await lease.start(await self._usable(start.snapshot, provider))
        return lease

    async def _place(self, session: SessionRow, request: SpawnRequest) -> Provider:
        """Choose the session's provider, once, and wait until there is a place for its machine."""
        provider, placed = None, []
        if session.tier is not None and session.provider is not None:
            provider = self._r.providers[session.provider]
        else:
            choice = await choose(request.provider or self._r.settings.provider, self._r.providers)
            provider, placed = choice.provider, [self._placed(choice)]
        if session.phase is Phase.PREPARING:
            await self._event_log.record(self.id, *placed)
        else:
            since = session.created_at if session.phase is Phase.CREATED else self._r.clock.now()
            self.waits = True
            await self._r.admission.claim(session, since, placed, is_task=self.only_turn is not None)
            self.waits = False
        return provider

    def _placed(self, choice: Choice) -> AnyBody:
        return SessionPlaced(provider=choice.provider.name, tier=choice.provider.tier.value, why=choice.why)

    async def _usable(self, snapshot: str | None, provider: Provider) -> str | None:
        """Return the live snapshot to start from, unless only its files can be used."""
        if snapshot is None or not isinstance(provider, SessionDisks) or self._workspace.disk.exists():
            return snapshot
        message = "the snapshot was taken by an older Hiveyard: its files are used, its memory cannot be"
        await self._event_log.record(self.id, Notice(message=message))
        return None

    async def _make_agent_runner(self, request: SpawnRequest, lease: MachineLease, door: Door) -> AgentRunner:
        on_turn_over = partial(self._on_turn_over, self) if request.snapshots == "turns" else lambda: None
        return await session_agent(self.id, request, lease.provider.capabilities.door_url, self._r, on_turn_over)

    def _open_ports(
        self, session: SessionRow, lease: MachineLease, request: SpawnRequest
    ) -> AbstractAsyncContextManager[SessionPorts | None]:
        return open_session_ports(session, lease.provider, self._r, wanted=request.port)

    async def _reconnect(self, session: SessionRow, lease: MachineLease) -> None:
        """Find the machine of a running session as the journal describes it. Raises MachineLost."""
        if not await lease.alive():
            raise MachineLost(f"{lease.name} stopped while no daemon was running")
        if session.activity is Activity.PAUSED:
            self.connection.hold()
            self.started.set()
        elif isinstance(lease.provider, Pauses):
            # A daemon that was killed while it took a snapshot left the machine paused.
            await lease.provider.resume(lease.name)

    # --- run ---------------------------------------------------------------------------------------------------------

    async def _run_agent(self, guest: Guest, agent_runner: AgentRunner) -> str:
        """Run the agent's program to its end and collect the work; return the reason for the end."""
        fresh = (await self._session()).phase is Phase.PREPARING
        async with self._phase("agent"):
            with self.stop.cancel_on_request() if fresh else nullcontext():
                if fresh:
                    await self._rename_branch(guest)
                info = await agent_runner.begin(guest, fresh=fresh)
            if fresh:
                begun = [(None, Entry(body)) for body in self._begun()]
                await self._event_log.record_entries(self.id, [*begun, *agent_runner.begun(info)])
            self.started.set()
            async with together() as group:
                group.start_soon(self._end_when_asked, guest, agent_runner, group.cancel_scope, name="stop")
                group.start_soon(self._watch_disk, name="watch the disk")
                await agent_runner.follow(guest, info)
                group.cancel_scope.cancel()
        reason = await self._why(guest, agent_runner)
        await self.collector.collect(guest)
        return reason

    def _begun(self) -> list[AnyBody]:
        """Return the events of an agent that begins to work."""
        return [SessionRunning()]

    def _phase(self, name: str) -> AbstractAsyncContextManager[None]:
        """Return a block whose duration is journaled, if that is of interest: a session's agent may stay for weeks."""
        return nullcontext()

    async def _rename_branch(self, guest: Guest) -> None:
        """Give the repository of a forked session its own branch."""
        session = await self._session()
        forked = await self._event_log.read(lambda conn: lineage.pending_start(conn, self.id))
        if isinstance(forked, SessionForked) and session.branch is not None:
            await rename_branch(guest, forked.branch, session.branch)

    async def _end_when_asked(self, guest: Guest, agent_runner: AgentRunner, attending: anyio.CancelScope) -> None:
        """End the program when a stop is requested, and `attending` soon after: a guest can keep the report of its end
        from us."""
        hurried = isinstance(await self.stop.wait(), DiskReserve)
        if hurried:
            attending.deadline = anyio.current_time() + DISK_FULL_TIMEOUT
        try:
            # When the disk fills up, there is no time for a graceful end.
            await agent_runner.end(guest, grace=0.0 if hurried else GRACE)
        except MachineLost:
            raise
        except HiveyardError as error:
            log.warning("session %s: its program could not be ended: %s", self.id, error.message)
        attending.deadline = min(attending.deadline, anyio.current_time() + EXIT_TIMEOUT)

    async def _watch_disk(self) -> None:
        await watch_disk(self._r.clock, self._r.settings, self._workspace.root, self.stop)

    async def _why(self, guest: Guest, agent_runner: AgentRunner) -> str:
        if self.stop.reason is not None:
            return self.stop.reason.advice
        code = (await agent_runner.end(guest)).exit_code
        how = "ended" if code is None else f"ended with exit code {code}"
        return f"the agent's program {how}"

    # --- the work ----------------------------------------------------------------------------------------------------

    async def _rescue(self, lost: HiveyardError, lease: MachineLease, agent_runner: AgentRunner) -> None:
        """Bring out the work of a machine that was lost: another machine reads the rest of the output and the files.
        A failure becomes a notice, because the files are kept."""
        session = await self._session()
        if session.phase is not Phase.RUNNING:
            return  # no agent has worked in it
        self.stop.request(lost)  # whoever resumes the session waits for its end
        await lease.failed(lost)
        try:
            await lease.provider.terminate(lease.name)
            async with self._r.rescues, reading_machine(session, self._r) as guest:
                await agent_runner.read_rest(guest)
                await self.collector.collect(guest)
        except StoreUnusable:
            raise
        except HiveyardError as error:
            self.collector.problem = error
            message = f"the work of the lost machine could not be collected: {error.message}"
            await self._event_log.record(self.id, Notice(message=message, code=error.code))

    # --- end ---------------------------------------------------------------------------------------------------------

    async def _conclude(self, reason: str) -> list[AnyBody]:
        """Return the events of a session that has ended."""
        return await self._end_events(reason, None)

    async def _fail(self, error: HiveyardError) -> list[AnyBody]:
        """Return the events of a session that cannot continue. It becomes stopped and can be resumed; without a
        repository there is nothing to resume, and it becomes failed."""
        if error is self.stop.reason and not isinstance(error, self.lost):
            return await self._end_events(error.advice, None)
        if self.lease is not None and isinstance(error, MachineLost):
            await self.lease.failed(error)
        if (await self._session()).base is None:
            return [*await self._remove_machine(), SessionFailed(failure=as_failure(error))]
        return await self._end_events(error.message, as_failure(error))

    async def _end_events(self, reason: str, failure: Failure | None) -> list[AnyBody]:
        if (await self._session()).phase is Phase.STOPPED:
            return []  # it waited for a place, and changed nothing
        await self._abort_turns(failure)
        collected = await self._is_collected()
        async with self._event_log.phase(self.id, "release"):
            problems = await self._remove_machine()
        return [*problems, *await self._finish_rewind(), SessionStopped(reason=reason, collected=collected)]

    async def _abort_turns(self, failure: Failure | None) -> None:
        for number, body in (await self._queue()).abort(failure):
            await self._event_log.record(self.id, body, turn=number)

    async def _is_collected(self) -> bool:
        """Return whether all its work was collected: now, or at its last end if it did not run since."""
        if (await self._session()).phase is Phase.RUNNING:
            return self.collector.collected
        return await self._event_log.read(lambda conn: lineage.is_collected(conn, self.id))

    async def _queue(self) -> TurnQueue:
        """Return its turns, also if its agent was never held because the machine was dead."""
        if self.agent_runner is not None:
            return self.agent_runner.queue
        session = await self._session()
        rows = await self._event_log.read(lambda conn: views.turns(conn, self.id))
        return TurnQueue(session.agent, rows, None)

    async def _remove_machine(self) -> list[AnyBody]:
        """Remove the machine, if there is one. A failure becomes a notice and is not raised: recovery tries again."""
        try:
            await self._release(await self._session())
        except StoreUnusable:
            raise
        except (HiveyardError, OSError) as error:
            log.exception("session %s: its machine could not be removed", self.id)
            return [Notice(message=f"the machine could not be removed yet: {error}")]
        return []

    async def _release(self, session: SessionRow) -> None:
        """Remove the machine, if there is one."""
        if session.provider is not None:
            await MachineLease(self.id, self._r.providers[session.provider], None, self._event_log).release()

    async def _finish_rewind(self) -> list[AnyBody]:
        """Carry out a rewind that is still pending; the rewind no longer counts once the session has ended. Return a
        notice if it fails."""
        try:
            if not self._files_ready:
                start = await self._event_log.read(lambda conn: StartPoint.of(conn, self.id))
                await start.restore_files(files_of(self._r, await self._session()))
        except StoreUnusable:
            raise
        except (HiveyardError, OSError) as error:
            log.exception("session %s: its files could not be rewound", self.id)
            return [Notice(message=f"the session was rewound, but its files are not those of the snapshot: {error}")]
        return []

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def wait_for(self, event: anyio.Event) -> None:
        """Wait for one of its events, or for its end, whichever comes first."""
        async with anyio.create_task_group() as group:

            async def either(event: anyio.Event) -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(either, event)
            group.start_soon(either, self.over)

    async def wait_until_ready(self, phase: Phase) -> AgentRunner:
        """Return what holds its agent. If a new daemon is still connecting to a running session, wait for that. Raises
        SessionNotRunning for a session that is being prepared."""
        if phase is Phase.RUNNING:
            await self.wait_for(self.ready)
        if self.agent_runner is None:
            raise SessionNotRunning("its machine is not ready yet", hint="try again in a moment; hv list")
        return self.agent_runner

    async def apply_budget(self) -> None:
        """Set the door's budget to the one in the journal."""
        session = await self._session()
        if self.door is not None:
            await self.door.limit(session_request(session).budget_usd)

    def _budget_spent(self) -> None:
        self.stop.request(BudgetSpent("its budget is spent", hint=f"hv resume {self.id} --budget DOLLARS"))

    async def _session(self) -> SessionRow:
        return await self._event_log.read(lambda conn: views.session(conn, self.id))
