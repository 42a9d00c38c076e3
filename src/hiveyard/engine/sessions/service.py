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
    BudgetSet,
    SessionCreated,
    SessionPaused,
    SessionPreparing,
    SessionUnpaused,
    TurnCreated,
)
from hiveyard.core.ports import Guest, Pauses, Provider, Terminals
from hiveyard.core.states import AT_WORK, Activity, Phase
from hiveyard.engine.access.host_ports import Owner
from hiveyard.engine.access.ssh_keys import config
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import check_prompt
from hiveyard.engine.sessions.agent_terminal import terminal_agent
from hiveyard.engine.sessions.ports import SessionPorts
from hiveyard.engine.sessions.request import SpawnRequest, request_of
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.sessions.view import SessionView, own, view, views_of
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.terminal_runner import TerminalRunner
from hiveyard.engine.validation import check, check_account, completed
from hiveyard.engine.workspace.create import create_and_record
from hiveyard.engine.workspace.integrity import check_integrity
from hiveyard.kit.names import new_id, slug
from hiveyard.store import journal, names, views
from hiveyard.store.views import SessionRow

log = logging.getLogger(__name__)
FIRST = 1
LOOKING = 5.0
"""Seconds that a new daemon waits to hear which machines live, before it answers anybody: what is known is told truly,
and a provider that does not answer holds nobody up."""


class Sessions:
    """The interface of sessions for the API. One SessionRunner at a time works on a session, in `group`. It has many
    methods because each verb of sessions is one of them; the work itself is in the runner and in the other modules of
    this room."""

    def __init__(self, resources: Resources, group: TaskGroup) -> None:
        self._r = resources
        self._group = group
        self._runners: dict[str, SessionRunner] = {}
        self._making = anyio.Lock()
        self._alone: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self.on_turn_over: Callable[[SessionRunner], None] = lambda runner: None

    # --- made and ended ----------------------------------------------------------------------------------------------

    async def spawn(self, request: SpawnRequest) -> str:
        """Take a session; returns its id once it is journaled and begun.

        Raises BadInput, UnknownAgent, NoSuchImage, RepositoryError, NoMemory for what can be told beforehand: then
        there is no session."""
        terminal_agent(request.agent or self._r.settings.agent)
        request = completed(request.checked(), self._r)
        if (made := await self._made_before(request)) is not None:
            return made
        await check(request, self._r)
        await self._check_room(request)
        async with self._making:
            if (made := await self._made_before(request)) is not None:
                return made
            id = request.id or new_id()
            if request.port is not None:
                await self._check_port(id, request.port)
            with anyio.CancelScope(shield=True):
                await self._create(id, request)
                self.begin(id)
        return id

    async def _made_before(self, request: SpawnRequest) -> str | None:
        """The session that was asked for with these words and this id before."""
        id = request.id
        if id is None or (session := await self._r.event_log.read(lambda conn: views.find_session(conn, id))) is None:
            return None
        request.made_before(session.request, "session")
        return id

    async def _create(self, id: str, request: SpawnRequest) -> None:
        """Make the session's directory, then journal the session, with its first prompt if it has one."""
        settings, now = self._r.settings, self._r.clock.now()
        agent = request.agent or settings.agent
        wanted = request.name or slug(request.prompt or request.repo.rstrip("/").rsplit("/", 1)[-1], fallback="session")
        workspace = self._r.workspace(id)

        def make() -> None:
            workspace.create(
                id=id,
                slug=wanted,
                repo=request.repo,
                agent=agent,
                prompt=request.prompt or "",
                at=now,
                tape=request.tape,
            )
            if request.prompt is not None:
                Prompts(workspace.prompts).write(FIRST, request.prompt)

        def write(conn: Connection) -> None:
            free = names.free_slug(conn, wanted)
            if request.name is not None and free != request.name:
                raise BadInput(f"there is already a session or task called {request.name}", hint=f"--name {free}")
            capacity.check(conn, settings, request.memory_mib or settings.memory_mib)
            created = SessionCreated(slug=free, repo=request.repo, agent=agent, request=request.as_json())
            journal.record(conn, id, created, at=now)
            if request.prompt is not None:
                journal.record(conn, id, TurnCreated(agent=agent, model=request.model or ""), at=now, turn=FIRST)

        await create_and_record(self._r, workspace.root, make, write)

    async def resume(self, id: str, budget_usd: float | None = None) -> None:
        """Go on in a new machine; that it does is journaled when this returns. One that is at work is a success.
        `budget_usd` is what it may spend in all from now on, also when it is at work; None leaves that as it is. Raises
        NoMemory, SessionNotRunning, BadInput (its account is not there, ...)."""
        async with self.alone(id):
            await self.until_stopped(id)
            session = await self._looked_at(id)
            if session.phase in AT_WORK:
                await self._set_budget(id, budget_usd)
            elif session.phase is Phase.STOPPED:
                await self._take_up(session, budget_usd)
            else:
                raise SessionNotRunning(f"{session.slug} is {session.phase}: only what was stopped can go on")

    async def _take_up(self, session: SessionRow, budget_usd: float | None) -> None:
        await check_integrity(self._r, session)
        # One that was imported, or whose keys were changed meanwhile, would fail at its first question.
        request = request_of(session)
        check_account(request, self._r)
        settings, now = self._r.settings, self._r.clock.now()

        def taken_up(conn: Connection) -> None:
            capacity.check(conn, settings, request.memory_mib or settings.memory_mib)
            _fund(conn, session.id, budget_usd, now)
            journal.record(conn, session.id, SessionPreparing(), at=now)

        with anyio.CancelScope(shield=True):
            await self._r.event_log.store.write(taken_up)
            self.begin(session.id)

    async def _set_budget(self, id: str, dollars: float | None) -> None:
        now = self._r.clock.now()
        await self._r.event_log.store.write(lambda conn: _fund(conn, id, dollars, now))
        if (runner := self._runners.get(id)) is not None:
            await runner.heed_budget()

    async def stop(self, id: str) -> None:
        """End its machine and keep its files; returns when that is done. One that is stopped is a success."""
        session = await self.row(id)
        if (runner := self._runners.get(id)) is None:
            # One that is being rewound has nobody at work for a moment, and goes on.
            async with self.alone(id):
                runner = self._runners.get(id)
        if runner is None:
            return
        if runner.frozen or session.activity is Activity.PAUSED:
            with contextlib.suppress(SessionNotRunning):  # it came to its end meanwhile
                await self.unpause(id)
        runner.stop.request(Cancelled("stopped"))
        await runner.over.wait()
        if runner.scope.cancel_called:
            await self.stop(id)  # it was let go of meanwhile: another may be in its place
            return
        log.info("session %s (%s) was stopped", id, session.slug)

    async def let_go(self, id: str) -> None:
        """Leave off work on it as a dying daemon would; what it has stays as it is."""
        if runner := self._runners.get(id):
            async with runner.changing:
                runner.scope.cancel()
                await runner.over.wait()

    def alone(self, id: str) -> anyio.Lock:
        """Held by who has a session begin, end or be gone: it is taken up, rewound, exported, removed by one at a
        time."""
        return self._alone.setdefault(id, anyio.Lock())

    async def until_stopped(self, id: str) -> None:
        """Wait for the end of one that is being stopped."""
        if (runner := self._runners.get(id)) is not None and runner.stop.reason is not None:
            await runner.over.wait()

    # --- told --------------------------------------------------------------------------------------------------------

    async def send(self, id: str, text: str) -> int:
        """One more prompt in the same conversation; returns the turn's number when it is journaled."""
        check_prompt(text, 'say what to do: hv send ID "now run the tests"')
        return await (await self._terminal_runner(id)).add(text)

    async def interrupt(self, id: str) -> None:
        """End the turn at work and keep the session. Raises AgentFailed."""
        terminal_runner, runner = await self._terminal_runner(id), await self.runner(id)
        async with runner.changing, self.guest(id) as guest:
            await terminal_runner.interrupt(guest)

    async def terminal(self, id: str, command: Command) -> Sequence[str]:
        """A program of this host that gives a person's terminal to `command` in the session's machine; see
        `Terminals.terminal`. Raises SessionNotRunning."""
        await self._terminal_runner(id)
        session = await self.row(id)
        provider = self._provider(session)
        if not isinstance(provider, Terminals):
            raise BadInput(f"{session.provider} has no terminals for people", hint=f"hv logs -f {session.slug}")
        return await provider.terminal(machine_name(id), command)

    async def open_port(self, id: str, guest: int, wanted: int | None) -> int:
        """Lead a port of the host to one of the guest; the host's. Raises PortTaken, NoFreePort, BadInput."""
        return await (await self._reach(id)).open(guest, wanted)

    async def close_port(self, id: str, guest: int) -> None:
        """Absent is a success."""
        await (await self._reach(id)).close(guest)

    async def ssh_config(self, id: str) -> str:
        """Return the configuration by which `ssh hv-NAME` reaches the session. Raises SessionNotRunning for one that
        has had no port yet."""
        seen = await self.view(id)
        if seen.port is None:
            raise SessionNotRunning(f"{seen.name} has no port for ssh yet", hint=f"hv resume {seen.name}")
        user = self._provider(await self.row(id)).capabilities.user
        keys = await anyio.to_thread.run_sync(self._r.ssh_keys.of, id)
        return config(seen.name, id, seen.port, user, keys)

    async def reachable(self, id: str) -> None:
        """Raises SessionNotRunning for one whose machine takes no commands now."""
        await self._terminal_runner(id)

    async def _reach(self, id: str) -> SessionPorts:
        await self._terminal_runner(id)
        reach = self._runners[id].reach
        assert reach is not None
        return reach

    async def pause(self, id: str) -> None:
        """Freeze its machine. One that is frozen is a success. Raises SessionNotRunning, CannotFreeze."""
        runner = await self.runner(id)
        async with runner.changing:
            session = await self.row(id)
            provider = self._pauses(session)
            if session.activity is Activity.PAUSED:
                return
            await begun(session, runner)
            if runner.stop.reason is not None:
                raise SessionNotRunning(f"{session.slug} is being stopped")
            await runner.freeze()
            try:
                await provider.pause(machine_name(id))
                await self._r.event_log.record(id, SessionPaused())
            except BaseException:
                # What nobody can read of in the journal is not frozen.
                with anyio.CancelScope(shield=True), contextlib.suppress(HiveyardError):
                    await provider.resume(machine_name(id))
                runner.thaw()
                raise

    async def unpause(self, id: str) -> None:
        """Let its machine go on. One that runs is a success."""
        runner = await self.runner(id)
        async with runner.changing:
            session = await self.row(id)
            if session.activity is Activity.PAUSED:
                # A daemon that has just started decides by this whether to go in.
                await runner.settled(session.phase)
                try:
                    await self._pauses(session).resume(machine_name(id))
                except (NoSuchMachine, MachineNotReady, MachineLost) as error:
                    log.warning("session %s was paused, and its machine is gone: %s", id, error.message)
                await self._r.event_log.record(id, SessionUnpaused())
            runner.thaw()

    async def harvest(self, id: str) -> None:
        """Bring out the work of a running session as it is now; what a stopped one left was brought out then. Raises
        SessionNotRunning for one that is paused or not ready yet, CollectTimeout."""
        while (runner := self._runners.get(id)) is not None and runner.stop.reason is None:
            await self.reachable(id)
            async with self._r.collecting(id):
                if self._runners.get(id) is not runner or runner.stop.reason is not None:
                    continue  # others came first, and it is no longer as it was
                async with self.guest(id) as guest:
                    await runner.collect_work(guest)
                return
        await self.until_stopped(id)

    # --- answers -----------------------------------------------------------------------------------------------------

    async def view(self, id: str) -> SessionView:
        return await self._r.event_log.read(lambda conn: view(conn, id))

    async def views(self, *, over: bool, limit: int | None = None) -> list[SessionView]:
        """Newest first; `over` takes in those that cannot go on."""
        return await self._r.event_log.read(lambda conn: views_of(conn, over=over, limit=limit))

    # --- life --------------------------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Go on with every session that was at work; one whose machine is gone becomes stopped, with the reason."""
        for session in await self._r.event_log.read(lambda conn: views.sessions(conn, phases=AT_WORK, own=True)):
            self.begin(session.id)

    async def look(self) -> None:
        """Wait until it is known of each session that was taken up whether its machine lives, `LOOKING` at most."""
        with anyio.move_on_after(LOOKING):
            for id in list(self._runners):
                await self._looked_at(id)

    def begin(self, id: str) -> None:
        """Work on it from now on."""
        runner = self._runners[id] = SessionRunner(id, self._r, lambda runner: self.on_turn_over(runner))
        self._group.start_soon(self._run, runner, name=f"session {id}")

    async def _run(self, runner: SessionRunner) -> None:
        try:
            with runner.scope:
                await runner.run()
        except Exception:
            log.exception("session %s is left as it is", runner.id)
        finally:
            if self._runners.get(runner.id) is runner:
                del self._runners[runner.id]
            runner.over.set()

    # --- small things ------------------------------------------------------------------------------------------------

    async def _check_port(self, id: str, port: int) -> None:
        """Raises PortTaken."""
        held = await self._r.host_ports.reserve(Owner(id, id), wanted=port)
        await self._r.host_ports.release(held)

    async def _check_room(self, request: SpawnRequest) -> None:
        settings = self._r.settings
        wanted = request.memory_mib or settings.memory_mib
        await self._r.event_log.read(lambda conn: capacity.check(conn, settings, wanted))

    async def row(self, id: str) -> SessionRow:
        """Raises NotFound, also for a task."""
        return await self._r.event_log.read(lambda conn: own(views.session(conn, id)))

    async def _looked_at(self, id: str) -> SessionRow:
        """As `row`, once it is known whether the machine of one that runs still lives. Raises NotFound."""
        session = await self.row(id)
        if session.phase is not Phase.RUNNING or (runner := self._runners.get(id)) is None:
            return session
        await runner.until(runner.ready)
        return await self.row(id)

    def at_work(self, id: str) -> SessionRunner | None:
        return self._runners.get(id)

    async def runner(self, id: str) -> SessionRunner:
        """Raises SessionNotRunning."""
        session = await self.row(id)
        if (runner := self._runners.get(id)) is None:
            raise SessionNotRunning(f"{session.slug} is {session.phase}", hint=f"hv resume {session.slug}")
        return runner

    async def _terminal_runner(self, id: str) -> TerminalRunner:
        """One that stands still for the moment of a snapshot can be told things: they wait."""
        runner, session = await self.runner(id), await self.row(id)
        if session.activity is Activity.PAUSED:
            raise SessionNotRunning("its machine is paused", hint=f"hv unpause {id}")
        return await runner.settled(session.phase)

    @asynccontextmanager
    async def guest(self, id: str) -> AsyncIterator[Guest]:
        """The inside of its machine."""
        async with self._provider(await self.row(id)).guest(machine_name(id)) as guest:
            yield guest

    def _provider(self, session: SessionRow) -> Provider:
        if session.provider is None:
            raise SessionNotRunning(f"{session.slug} has no machine yet", hint="hv list")
        return self._r.providers[session.provider]

    def _pauses(self, session: SessionRow) -> Pauses:
        provider = self._provider(session)
        if not isinstance(provider, Pauses):
            hint = f"hv stop {session.slug} ends it and keeps its files"
            raise BadInput(f"{session.provider} cannot freeze a machine", hint=hint)
        return provider


async def begun(session: SessionRow, runner: SessionRunner) -> TerminalRunner:
    """Return the runner of a session whose agent has started. Raises SessionNotRunning for one that is still being
    prepared: if a daemon were killed while such a session is paused, nothing would unpause it."""
    if session.phase is not Phase.RUNNING:
        raise SessionNotRunning("its agent has not begun yet", hint="try again in a moment; hv list")
    return await runner.settled(session.phase)


def _fund(conn: Connection, id: str, dollars: float | None, at: float) -> None:
    """Journal what a session may spend in all from now on; None: as before. Raises BadInput."""
    if dollars is None:
        return
    session = views.session(conn, id)
    spent = session.spent.cost_usd or 0.0
    if dollars <= spent:
        raise BadInput(
            f"a budget of ${dollars:.2f} is not above what {session.slug} has spent: ${spent:.4f}",
            hint=f"hv resume {session.slug} --budget {spent + 1:.2f}",
        )
    journal.record(conn, id, BudgetSet(dollars=dollars), at=at)
