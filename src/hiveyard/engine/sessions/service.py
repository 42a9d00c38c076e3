"""The service for sessions: create, prompt, pause, stop and resume them. Tasks have their own entry in the engine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.core.errors import (
    BadInput,
    HiveyardError,
    MachineLost,
    MachineNotReady,
    NoSuchMachine,
    SessionNotRunning,
)
from hiveyard.core.events import (
    AnyBody,
    SessionOpened,
    SessionPaused,
    SessionPreparing,
    SessionStopAsked,
    SessionUnpaused,
    TurnCreated,
)
from hiveyard.core.ports import Guest, Pauses, Provider
from hiveyard.core.states import AT_WORK, Activity, Phase
from hiveyard.engine.access.host_ports import Owner
from hiveyard.engine.event_log import Listing
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import check_prompt
from hiveyard.engine.sessions.change import SessionChange, keep_change, record_change
from hiveyard.engine.sessions.creation import create, existing
from hiveyard.engine.sessions.request import SpawnRequest, session_request
from hiveyard.engine.sessions.session_agent import check_agent
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.sessions.view import SessionView, require_session, session_views, view
from hiveyard.engine.turns.agent_runner import AgentRunner
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.validation import check_account, check_image, validate, with_defaults
from hiveyard.engine.workspace.integrity import check_integrity
from hiveyard.kit.names import new_id
from hiveyard.store import journal, lineage, views
from hiveyard.store.views import SessionRow, TaskRow, TurnRow

log = logging.getLogger(__name__)
_UNCHANGED = SessionChange()
MACHINE_CHECK_TIMEOUT = 5.0
"""Seconds that a new daemon waits, before it serves requests, to learn which machines are alive. So its answers are
right where providers respond, and a provider that does not respond delays it no longer."""


class Sessions:
    """The interface of sessions for the API. One SessionRunner at a time works on a session, in `group`. It has many
    methods because each verb of sessions is one of them; the work itself is in the runner and in the other modules of
    this room."""

    def __init__(self, resources: Resources, group: TaskGroup) -> None:
        self._r = resources
        self._group = group
        self._runners: dict[str, SessionRunner] = {}
        self._creating = anyio.Lock()
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self.on_turn_over: Callable[[SessionRunner], None] = lambda runner: None

    # --- create, resume, stop ----------------------------------------------------------------------------------------

    async def spawn(self, request: SpawnRequest, *facts: AnyBody) -> str:
        """Create a session; return its id once it is journaled, together with `facts` about it, and started.

        Raises BadInput, UnknownAgent, NoSuchImage, RepositoryError or NoMemory for a request that cannot work: then no
        session was created."""
        check_agent(request, self._r.settings.agent)
        request = with_defaults(request, self._r)
        if (known := await existing(request, self._r)) is not None:
            return known
        await validate(request, self._r)
        if not request.wait:
            await self._check_capacity(request)
        async with self._creating:
            if (known := await existing(request, self._r)) is not None:
                return known
            id = request.id or new_id()
            if request.port is not None:
                await self._check_port(id, request.port)
            with anyio.CancelScope(shield=True):
                await create(id, request, self._r, facts)
                self.start(id)
        return id

    async def resume(
        self, id: str, change: SessionChange = _UNCHANGED, prompt: str | None = None, *, wait: bool = False
    ) -> int:
        """Resume a stopped session, or the session of a task that is over, in a new machine; return when that is
        journaled. Succeeds for a session that is running, whose budget can be changed, too. `prompt` is its next
        prompt, whose turn is returned (without one, 0). With `wait` it waits in line for memory, until the daemon ends.
        Raises NoMemory, SessionNotRunning, BadInput (for instance if its account does not exist)."""
        async with self.lock(id):
            await self.until_stopped(id)
            if await self._task_that_is_over(id) is not None:
                return await self._resume(await self.any_row(id), change, prompt, wait=wait)
            session = await self._row_with_machine_checked(id)
            if session.phase is Phase.STOPPED and not self.waits(id):
                return await self._resume(session, change, prompt, wait=wait)
            if session.phase not in AT_WORK and not self.waits(id):
                raise SessionNotRunning(f"{session.slug} is {session.phase}: only a stopped session can be resumed")
            await self._change_running(session, change)
        return await self.send(id, prompt) if prompt is not None else 0

    async def _task_that_is_over(self, id: str) -> TaskRow | None:
        """Return the task whose session does not go on as a session yet. Raises SessionNotRunning for one that is not
        over."""

        def read(conn: Connection) -> TaskRow | None:
            return None if views.session(conn, id).own else views.find_task(conn, id)

        task = await self._r.event_log.read(read)
        if task is not None and not task.state.over:
            raise SessionNotRunning(f"{task.slug} is a task, and {task.state.value}", hint=f"hv wait {task.slug}")
        return task

    async def _resume(self, session: SessionRow, change: SessionChange, prompt: str | None, *, wait: bool) -> int:
        # Keys may have changed since, and an imported session may name an account that this host does not have: without
        # this check its first request to a model would fail.
        request = session_request(session)
        changed = change.applied(request)
        check_agent(changed, session.agent)
        if session.base is None and session.phase is Phase.FAILED:
            raise SessionNotRunning(f"{session.slug} failed before it had a repository", hint=f"hv show {session.slug}")
        await check_integrity(self._r, session)
        check_account(changed, self._r)
        if change.image is not None:
            check_image(changed, session.provider or self._r.settings.provider, self._r)
        await anyio.to_thread.run_sync(keep_change, self._r.workspace(session.id), change, changed)
        settings, now = self._r.settings, self._r.clock.now()
        turn = 1 + max((row.number for row in await self._turns(session.id)), default=0) if prompt is not None else 0
        if prompt is not None:
            check_prompt(prompt, "without a prompt the agent waits for you")
            await Prompts(self._r.workspace(session.id).prompts).keep(turn, prompt)

        def write(conn: Connection) -> None:
            if not wait:
                capacity.check(conn, settings, changed.memory_mib or settings.memory_mib, excluding=session.id)
            if not session.own:
                journal.record(conn, session.id, SessionOpened(), at=now)
            record_change(conn, session.id, change, changed, now)
            if not wait:
                journal.record(conn, session.id, SessionPreparing(), at=now)
            if turn:
                created = TurnCreated(agent=session.agent, model=changed.model or "")
                journal.record(conn, session.id, created, at=now, turn=turn)

        with anyio.CancelScope(shield=True):
            await self._r.event_log.store.write(write)
            self.start(session.id).waits = wait
        return turn

    async def _turns(self, id: str) -> list[TurnRow]:
        return await self._r.event_log.read(lambda conn: views.turns(conn, id))

    async def _change_running(self, session: SessionRow, change: SessionChange) -> None:
        """Change a running session. Raises BadInput for a change that needs another process."""
        if not change.only_budget:
            hint = f"hv stop {session.slug}, then hv resume; hv model changes the model of a live session"
            raise BadInput(f"{session.slug} runs, and only its budget can be changed now", hint=hint)
        now, changed = self._r.clock.now(), change.applied(session_request(session))
        await self._r.event_log.store.write(lambda conn: record_change(conn, session.id, change, changed, now))
        if (runner := self._runners.get(session.id)) is not None:
            await runner.apply_budget()

    async def stop(self, id: str, reason: str = "") -> None:
        """Stop a session: remove its machine and keep its files. A task is cancelled: its work so far is collected.
        Return when that is done. Succeeds for one that does not run. `reason` is journaled, if it is not the usual
        one."""
        runner = await self.ask_to_stop(id, reason)
        if runner is None:
            # A session that is being rewound has no runner for a moment, and then continues.
            async with self.lock(id):
                runner = await self.ask_to_stop(id, reason)
        if runner is None:
            return
        await runner.over.wait()
        if runner.scope.cancel_called:
            await self.stop(id, reason)  # the runner was detached meanwhile, and another one may have replaced it
            return
        log.info("%s was stopped", id)

    async def ask_to_stop(self, id: str, reason: str = "") -> SessionRunner | None:
        """Journal that a user wants the end of a session or task, and let its runner know: it is returned, or None if
        there is none. The next daemon knows it, too."""
        session = await self.any_row(id)
        if (runner := self._runners.get(id)) is None:
            return None
        await self._r.event_log.record(id, runner.stop_asked(reason))
        if runner.connection.frozen or session.activity is Activity.PAUSED:
            with contextlib.suppress(SessionNotRunning):  # it ended meanwhile
                await self.unpause(id)
        runner.ask_to_stop(reason)
        return runner

    async def detach(self, id: str) -> None:
        """Stop working on a session, as a daemon that is killed would: its machine and files stay as they are."""
        if runner := self._runners.get(id):
            async with runner.machine_lock:
                runner.scope.cancel()
                await runner.over.wait()

    def lock(self, id: str) -> anyio.Lock:
        """Return the lock held while a session is resumed, rewound, exported or removed."""
        return self._locks.setdefault(id, anyio.Lock())

    async def until_stopped(self, id: str) -> None:
        """Wait until a session that is being stopped has stopped."""
        if (runner := self._runners.get(id)) is not None and runner.stop.reason is not None:
            await runner.over.wait()

    # --- running sessions --------------------------------------------------------------------------------------------

    async def send(self, id: str, text: str) -> int:
        """Send a prompt in the same conversation; return the turn's number once it is journaled. A task that is over
        goes on as a session."""
        check_prompt(text, 'say what to do: hv send ID "now run the tests"')
        if await self._task_that_is_over(id) is not None:
            return await self.resume(id, prompt=text)
        return await (await self.agent_runner(id)).add(text)

    async def interrupt(self, id: str) -> None:
        """End the current turn; the session keeps running. Raises AgentFailed."""
        agent_runner, runner = await self.agent_runner(id), await self.runner(id)
        async with runner.machine_lock, self.guest(id) as guest:
            await agent_runner.interrupt(guest)

    async def check_reachable(self, id: str) -> None:
        """Raise SessionNotRunning for a session whose machine accepts no commands at the moment."""
        await self.agent_runner(id)

    async def pause(self, id: str) -> None:
        """Pause a session's machine. Succeeds if it is paused. Raises SessionNotRunning, CannotFreeze."""
        await self.row(id)
        runner = await self.runner(id)
        async with runner.machine_lock:
            session = await self.row(id)
            provider = self._pauses(session)
            if session.activity is Activity.PAUSED:
                return
            await require_started(session, runner)
            if runner.stop.reason is not None:
                raise SessionNotRunning(f"{session.slug} is being stopped")
            await runner.connection.freeze()
            try:
                await provider.pause(machine_name(id))
                await self._r.event_log.record(id, SessionPaused())
            except BaseException:
                # A machine must not stay paused if the journal does not say so.
                with anyio.CancelScope(shield=True), contextlib.suppress(HiveyardError):
                    await provider.resume(machine_name(id))
                runner.connection.thaw()
                raise

    async def unpause(self, id: str) -> None:
        """Unpause a session's machine. Succeeds if it is not paused."""
        runner = await self.runner(id)
        async with runner.machine_lock:
            session = await self.row(id)
            if session.activity is Activity.PAUSED:
                # A runner that a new daemon has just started reads the journal to decide whether to enter the machine.
                await runner.wait_until_ready(session.phase)
                try:
                    await self._pauses(session).resume(machine_name(id))
                except (NoSuchMachine, MachineNotReady, MachineLost) as error:
                    log.warning("session %s was paused, and its machine no longer exists: %s", id, error.message)
                await self._r.event_log.record(id, SessionUnpaused())
            runner.connection.thaw()

    async def collect(self, id: str) -> None:
        """Collect the current work of a running session; the work of a stopped one was collected when it stopped.
        Raises SessionNotRunning for a session that is paused or not ready yet, CollectTimeout."""
        while (runner := self._runners.get(id)) is not None and runner.stop.reason is None:
            try:
                await self.check_reachable(id)
            except SessionNotRunning:
                if runner.stop.reason is None:
                    raise
                break  # its machine was lost, and another one brings out the work
            async with self._r.collect_lock(id):
                if self._runners.get(id) is not runner or runner.stop.reason is not None:
                    continue  # it was stopped or resumed while this waited for the lock
                async with self.guest(id) as guest:
                    await runner.collector.work(guest)
                return
        await self.until_stopped(id)

    # --- queries -----------------------------------------------------------------------------------------------------

    async def view(self, id: str) -> SessionView:
        """Return the view of a session, or of the session of a task. Raises NotFound."""
        waiting = self._r.admission.waiting()
        return await self._r.event_log.read(lambda conn: view(conn, id, waiting))

    async def views(
        self, *, over: bool, tasks: bool = False, ids: Collection[str] | None = None, limit: int | None = None
    ) -> Listing[SessionView]:
        """Return sessions, newest first; `over` includes those that cannot be resumed, `tasks` those of tasks; `ids`
        selects some of them."""
        waiting = self._r.admission.waiting()
        return await self._r.event_log.read_list(
            lambda conn: session_views(conn, waiting, over=over, tasks=tasks, ids=ids, limit=limit)
        )

    # --- runners -----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Continue every session that was running. A session whose machine no longer exists becomes stopped, with the
        reason."""

        def read(conn: Connection) -> dict[str, SessionStopAsked | None]:
            return {row.id: lineage.stop_asked(conn, row.id) for row in views.sessions(conn, phases=AT_WORK, own=True)}

        for id, asked in (await self._r.event_log.read(read)).items():
            runner = self.start(id)
            if asked is not None:
                runner.ask_to_stop(asked.reason)

    async def wait_for_machines(self) -> None:
        """Wait until the machine of each recovered session is known to live or not, at most `MACHINE_CHECK_TIMEOUT`."""
        with anyio.move_on_after(MACHINE_CHECK_TIMEOUT):
            for id in list(self._runners):
                await self._row_with_machine_checked(id)

    def start(self, id: str) -> SessionRunner:
        """Start a runner for a session."""
        runner = SessionRunner(id, self._r, lambda runner: self.on_turn_over(runner))
        self.attend(runner)
        return runner

    def attend(self, runner: SessionRunner) -> None:
        """Run a session by `runner`, until it ends."""
        self._runners[runner.id] = runner
        self._group.start_soon(self._run, runner, name=f"session {runner.id}")

    async def _run(self, runner: SessionRunner) -> None:
        try:
            with runner.scope:
                await runner.run()
        except Exception:
            log.exception("session %s failed with an internal error; the next daemon continues it", runner.id)
        finally:
            if self._runners.get(runner.id) is runner:
                del self._runners[runner.id]
            runner.over.set()

    # --- helpers -----------------------------------------------------------------------------------------------------

    async def _check_port(self, id: str, port: int) -> None:
        """Check that a host port is free. Raises PortTaken."""
        held = await self._r.host_ports.reserve(Owner(id, id), wanted=port)
        await self._r.host_ports.release(held)

    async def _check_capacity(self, request: SpawnRequest) -> None:
        settings = self._r.settings
        wanted = request.memory_mib or settings.memory_mib
        await self._r.event_log.read(lambda conn: capacity.check(conn, settings, wanted))

    async def any_row(self, id: str) -> SessionRow:
        """Return the row of a session or task. Raises NotFound."""
        return await self._r.event_log.read(lambda conn: views.session(conn, id))

    async def row(self, id: str) -> SessionRow:
        """Return a session's row. Raises NotFound, also for a task that does not go on as a session."""
        return await self._r.event_log.read(lambda conn: require_session(views.session(conn, id)))

    async def _row_with_machine_checked(self, id: str) -> SessionRow:
        """Return a session's row as `row` does, but wait until it is known whether a running session's machine is still
        alive."""
        session = await self.any_row(id)
        if session.phase is not Phase.RUNNING or (runner := self._runners.get(id)) is None:
            return session
        await runner.wait_for(runner.ready)
        return await self.any_row(id)

    @property
    def runners(self) -> list[SessionRunner]:
        """All runners, of sessions and of tasks."""
        return list(self._runners.values())

    def waits(self, id: str) -> bool:
        """Return whether a session waits in line for a place."""
        return (runner := self._runners.get(id)) is not None and runner.waits

    def find_runner(self, id: str) -> SessionRunner | None:
        return self._runners.get(id)

    async def runner(self, id: str) -> SessionRunner:
        """Return the runner of a session or task. Raises SessionNotRunning."""
        session = await self.any_row(id)
        if (runner := self._runners.get(id)) is None:
            raise SessionNotRunning(f"{session.slug} is {session.phase}", hint=f"hv resume {session.slug}")
        return runner

    async def agent_runner(self, id: str) -> AgentRunner:
        """Return what holds a session's agent. Raises SessionNotRunning for a paused session. A session that is held
        for a snapshot accepts prompts: they wait until it continues."""
        runner, session = await self.runner(id), await self.any_row(id)
        if session.activity is Activity.PAUSED:
            raise SessionNotRunning("its machine is paused", hint=f"hv unpause {id}")
        return await runner.wait_until_ready(session.phase)

    @asynccontextmanager
    async def guest(self, id: str) -> AsyncIterator[Guest]:
        """Yield the guest of the machine of a session or task."""
        async with self.provider(await self.any_row(id)).guest(machine_name(id)) as guest:
            yield guest

    def provider(self, session: SessionRow) -> Provider:
        if session.provider is None:
            raise SessionNotRunning(f"{session.slug} has no machine yet", hint="hv list")
        return self._r.providers[session.provider]

    def _pauses(self, session: SessionRow) -> Pauses:
        provider = self.provider(session)
        if not isinstance(provider, Pauses):
            hint = f"hv stop {session.slug} stops it and keeps its files"
            raise BadInput(f"the provider {session.provider} cannot pause a machine", hint=hint)
        return provider


async def require_started(session: SessionRow, runner: SessionRunner) -> AgentRunner:
    """Return the runner of a session whose agent has started. Raises SessionNotRunning for one that is still being
    prepared: if a daemon were killed while such a session is paused, nothing would unpause it."""
    if session.phase is not Phase.RUNNING:
        raise SessionNotRunning("its agent has not started yet", hint="try again in a moment; hv list")
    return await runner.wait_until_ready(session.phase)
