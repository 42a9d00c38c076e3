"""The service for sessions: create, prompt, pause, stop and resume them. Tasks have their own entry in the engine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.core.commands import Command
from hiveyard.core.errors import (
    BadInput,
    Cancelled,
    HiveyardError,
    MachineLost,
    MachineNotReady,
    NoSuchMachine,
    SessionNotRunning,
)
from hiveyard.core.events import (
    AnyBody,
    BudgetSet,
    SessionOpened,
    SessionPaused,
    SessionPreparing,
    SessionUnpaused,
    TurnCreated,
)
from hiveyard.core.ports import Guest, Pauses, Provider, Terminals
from hiveyard.core.states import AT_WORK, Activity, Phase
from hiveyard.engine.access.host_ports import Owner
from hiveyard.engine.access.ssh_keys import config
from hiveyard.engine.event_log import Listing
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import check_prompt
from hiveyard.engine.sessions.creation import create, existing
from hiveyard.engine.sessions.ports import SessionPorts
from hiveyard.engine.sessions.request import SpawnRequest, request_after_task, session_request
from hiveyard.engine.sessions.session_agent import LIVE, check_agent, mode_of
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.sessions.view import SessionView, require_session, session_views, view
from hiveyard.engine.turns.agent_runner import AgentRunner
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.validation import check_account, validate, with_defaults
from hiveyard.engine.workspace.integrity import check_integrity
from hiveyard.kit.names import new_id
from hiveyard.store import journal, views
from hiveyard.store.views import SessionRow, TaskRow, TurnRow

log = logging.getLogger(__name__)
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
        request = with_defaults(request.checked(), self._r)
        if (known := await existing(request, self._r)) is not None:
            return known
        await validate(request, self._r)
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

    async def resume(self, id: str, budget_usd: float | None = None, prompt: str | None = None) -> int:
        """Resume a stopped session, or the session of a task that is over, in a new machine; return when that is
        journaled. Succeeds for a session that is running. `budget_usd` is its new total budget, also for a running
        session; None leaves the budget unchanged. `prompt` is its next prompt, whose turn is returned (without one, 0).
        Raises NoMemory, SessionNotRunning, BadInput (for instance if its account does not exist)."""
        async with self.lock(id):
            await self.until_stopped(id)
            if (task := await self._task_that_is_over(id)) is not None:
                return await self._resume(await self._any_row(id), task, budget_usd, prompt)
            session = await self._row_with_machine_checked(id)
            if session.phase is Phase.STOPPED:
                return await self._resume(session, None, budget_usd, prompt)
            if session.phase not in AT_WORK:
                raise SessionNotRunning(f"{session.slug} is {session.phase}: only a stopped session can be resumed")
            await self._set_budget(id, budget_usd)
        return await self.send(id, prompt) if prompt is not None else 0

    async def _task_that_is_over(self, id: str) -> TaskRow | None:
        """Return the task whose session does not go on as a session yet. Raises SessionNotRunning for one that is not
        over."""

        def read(conn: Connection) -> TaskRow | None:
            return None if views.session(conn, id).request is not None else views.find_task(conn, id)

        task = await self._r.event_log.read(read)
        if task is not None and not task.state.over:
            raise SessionNotRunning(f"{task.slug} is a task, and {task.state.value}", hint=f"hv wait {task.slug}")
        return task

    async def _resume(
        self, session: SessionRow, task: TaskRow | None, budget_usd: float | None, prompt: str | None
    ) -> int:
        # Keys may have changed since, and an imported session may name an account that this host does not have: without
        # this check its first request to a model would fail.
        request = session_request(session) if task is None else request_after_task(task, session.agent)
        check_agent(request, session.agent)
        if session.base is None and session.phase is Phase.FAILED:
            raise SessionNotRunning(f"{session.slug} failed before it had a repository", hint=f"hv show {session.slug}")
        await check_integrity(self._r, session)
        check_account(request, self._r)
        settings, now = self._r.settings, self._r.clock.now()
        turn = 1 + max((row.number for row in await self._turns(session.id)), default=0) if prompt is not None else 0
        if prompt is not None:
            check_prompt(prompt, "without a prompt the agent waits for you")
            await Prompts(self._r.workspace(session.id).prompts).keep(turn, prompt)

        def write(conn: Connection) -> None:
            capacity.check(conn, settings, request.memory_mib or settings.memory_mib)
            if task is not None:
                journal.record(conn, session.id, SessionOpened(request=request.as_json()), at=now)
            _record_budget(conn, session.id, budget_usd, now)
            journal.record(conn, session.id, SessionPreparing(), at=now)
            if turn:
                created = TurnCreated(agent=session.agent, model=request.model or "")
                journal.record(conn, session.id, created, at=now, turn=turn)

        with anyio.CancelScope(shield=True):
            await self._r.event_log.store.write(write)
            self.start(session.id)
        return turn

    async def _turns(self, id: str) -> list[TurnRow]:
        return await self._r.event_log.read(lambda conn: views.turns(conn, id))

    async def _any_row(self, id: str) -> SessionRow:
        return await self._r.event_log.read(lambda conn: views.session(conn, id))

    async def _set_budget(self, id: str, dollars: float | None) -> None:
        now = self._r.clock.now()
        await self._r.event_log.store.write(lambda conn: _record_budget(conn, id, dollars, now))
        if (runner := self._runners.get(id)) is not None:
            await runner.apply_budget()

    async def stop(self, id: str, reason: str = "stopped") -> None:
        """Stop a session: remove its machine and keep its files. Return when that is done. Succeeds for a session that
        is stopped. `reason` is journaled."""
        session = await self.row(id)
        if (runner := self._runners.get(id)) is None:
            # A session that is being rewound has no runner for a moment, and then continues.
            async with self.lock(id):
                runner = self._runners.get(id)
        if runner is None:
            return
        if runner.frozen or session.activity is Activity.PAUSED:
            with contextlib.suppress(SessionNotRunning):  # it ended meanwhile
                await self.unpause(id)
        runner.stop.request(Cancelled(reason))
        await runner.over.wait()
        if runner.scope.cancel_called:
            await self.stop(id, reason)  # the runner was detached meanwhile, and another one may have replaced it
            return
        log.info("session %s (%s) was stopped", id, session.slug)

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

    async def terminal(self, id: str, command: Command, *, of_agent: bool = False) -> Sequence[str]:
        """Return the command line of a host program that connects the user's terminal to `command` in the session's
        machine; see `Terminals.terminal`. `of_agent`: it shows the agent's own terminal. Raises SessionNotRunning;
        BadInput if there is no such terminal."""
        await self.agent_runner(id)
        session = await self.row(id)
        if of_agent and mode_of(session) == LIVE:
            raise BadInput(f"the agent of {session.slug} is live and has no terminal", hint=f"hv attach {session.slug}")
        provider = self._provider(session)
        if not isinstance(provider, Terminals):
            raise BadInput(
                f"the provider {session.provider} has no interactive terminals", hint=f"hv logs -f {session.slug}"
            )
        return await provider.terminal(machine_name(id), command)

    async def open_port(self, id: str, guest: int, wanted: int | None) -> int:
        """Forward a host port to a port of the guest; return the host port. Raises PortTaken, NoFreePort, BadInput."""
        return await (await self._ports(id)).open(guest, wanted)

    async def close_port(self, id: str, guest: int) -> None:
        """Stop forwarding to a port of the guest; succeeds if it is not open."""
        await (await self._ports(id)).close(guest)

    async def ssh_config(self, id: str) -> str:
        """Return the configuration with which `ssh hv-NAME` connects to the session. Raises SessionNotRunning for a
        session that has no ssh port yet."""
        seen = await self.view(id)
        if seen.port is None:
            raise SessionNotRunning(f"{seen.name} has no ssh port yet", hint=f"hv resume {seen.name}")
        user = self._provider(await self.row(id)).capabilities.user
        keys = await anyio.to_thread.run_sync(self._r.ssh_keys.of, id)
        return config(seen.name, id, seen.port, user, keys)

    async def check_reachable(self, id: str) -> None:
        """Raise SessionNotRunning for a session whose machine accepts no commands at the moment."""
        await self.agent_runner(id)

    async def _ports(self, id: str) -> SessionPorts:
        await self.agent_runner(id)
        ports = self._runners[id].ports
        assert ports is not None
        return ports

    async def pause(self, id: str) -> None:
        """Pause a session's machine. Succeeds if it is paused. Raises SessionNotRunning, CannotFreeze."""
        runner = await self.runner(id)
        async with runner.machine_lock:
            session = await self.row(id)
            provider = self._pauses(session)
            if session.activity is Activity.PAUSED:
                return
            await require_started(session, runner)
            if runner.stop.reason is not None:
                raise SessionNotRunning(f"{session.slug} is being stopped")
            await runner.freeze()
            try:
                await provider.pause(machine_name(id))
                await self._r.event_log.record(id, SessionPaused())
            except BaseException:
                # A machine must not stay paused if the journal does not say so.
                with anyio.CancelScope(shield=True), contextlib.suppress(HiveyardError):
                    await provider.resume(machine_name(id))
                runner.thaw()
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
            runner.thaw()

    async def collect(self, id: str) -> None:
        """Collect the current work of a running session; the work of a stopped one was collected when it stopped.
        Raises SessionNotRunning for a session that is paused or not ready yet, CollectTimeout."""
        while (runner := self._runners.get(id)) is not None and runner.stop.reason is None:
            await self.check_reachable(id)
            async with self._r.collect_lock(id):
                if self._runners.get(id) is not runner or runner.stop.reason is not None:
                    continue  # it was stopped or resumed while this waited for the lock
                async with self.guest(id) as guest:
                    await runner.collect_work(guest)
                return
        await self.until_stopped(id)

    # --- queries -----------------------------------------------------------------------------------------------------

    async def view(self, id: str) -> SessionView:
        return await self._r.event_log.read(lambda conn: view(conn, id))

    async def views(self, *, over: bool, limit: int | None = None) -> Listing[SessionView]:
        """Return all sessions, newest first; `over` includes those that cannot be resumed."""
        return await self._r.event_log.read_list(lambda conn: session_views(conn, over=over, limit=limit))

    # --- runners -----------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Continue every session that was running. A session whose machine no longer exists becomes stopped, with the
        reason."""
        for session in await self._r.event_log.read(lambda conn: views.sessions(conn, phases=AT_WORK, own=True)):
            self.start(session.id)

    async def wait_for_machines(self) -> None:
        """Wait until the machine of each recovered session is known to live or not, at most `MACHINE_CHECK_TIMEOUT`."""
        with anyio.move_on_after(MACHINE_CHECK_TIMEOUT):
            for id in list(self._runners):
                await self._row_with_machine_checked(id)

    def start(self, id: str) -> None:
        """Start a runner for a session."""
        runner = self._runners[id] = SessionRunner(id, self._r, lambda runner: self.on_turn_over(runner))
        self._group.start_soon(self._run, runner, name=f"session {id}")

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

    async def row(self, id: str) -> SessionRow:
        """Return a session's row. Raises NotFound, also for a task."""
        return await self._r.event_log.read(lambda conn: require_session(views.session(conn, id)))

    async def _row_with_machine_checked(self, id: str) -> SessionRow:
        """Return a session's row as `row` does, but wait until it is known whether a running session's machine is still
        alive."""
        session = await self.row(id)
        if session.phase is not Phase.RUNNING or (runner := self._runners.get(id)) is None:
            return session
        await runner.wait_for(runner.ready)
        return await self.row(id)

    def find_runner(self, id: str) -> SessionRunner | None:
        return self._runners.get(id)

    async def runner(self, id: str) -> SessionRunner:
        """Return a session's runner. Raises SessionNotRunning."""
        session = await self.row(id)
        if (runner := self._runners.get(id)) is None:
            raise SessionNotRunning(f"{session.slug} is {session.phase}", hint=f"hv resume {session.slug}")
        return runner

    async def agent_runner(self, id: str) -> AgentRunner:
        """Return what holds a session's agent. Raises SessionNotRunning for a paused session. A session that is held
        for a snapshot accepts prompts: they wait until it continues."""
        runner, session = await self.runner(id), await self.row(id)
        if session.activity is Activity.PAUSED:
            raise SessionNotRunning("its machine is paused", hint=f"hv unpause {id}")
        return await runner.wait_until_ready(session.phase)

    @asynccontextmanager
    async def guest(self, id: str) -> AsyncIterator[Guest]:
        """Yield the guest of a session's machine."""
        async with self._provider(await self.row(id)).guest(machine_name(id)) as guest:
            yield guest

    def _provider(self, session: SessionRow) -> Provider:
        if session.provider is None:
            raise SessionNotRunning(f"{session.slug} has no machine yet", hint="hv list")
        return self._r.providers[session.provider]

    def _pauses(self, session: SessionRow) -> Pauses:
        provider = self._provider(session)
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


def _record_budget(conn: Connection, id: str, dollars: float | None, at: float) -> None:
    """Journal a session's new total budget; None leaves it unchanged. Raises BadInput."""
    if dollars is None:
        return
    session = views.session(conn, id)
    spent = session.spent.cost_usd or 0.0
    if dollars <= spent:
        raise BadInput(
            f"the budget of ${dollars:.2f} is not more than {session.slug} has spent: ${spent:.4f}",
            hint=f"hv resume {session.slug} --budget {spent + 1:.2f}",
        )
    journal.record(conn, id, BudgetSet(dollars=dollars), at=at)
