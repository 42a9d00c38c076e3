"""Run a session in one machine: from the copy of the repository to the end of the agent's own terminal program.

Each step looks at the journal and does only what is missing. So the same steps start a session, continue one that a
killed daemon left, and resume one that was stopped. Nobody needs to be attached to the terminal.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from hiveyard import repository
from hiveyard.core.errors import (
    BudgetSpent,
    CollectTimeout,
    DiskReserve,
    GuestDisconnected,
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
    SessionPreparing,
    SessionRunning,
    SessionStopped,
)
from hiveyard.core.ports import Guest, Pauses, Provider
from hiveyard.core.states import Activity, Phase
from hiveyard.door.door import Door
from hiveyard.engine.placement.machine_lease import MachineLease
from hiveyard.engine.placement.provider_choice import choose
from hiveyard.engine.placement.provisioner import Provisioner
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.agent_terminal import terminal_agent, turn_of
from hiveyard.engine.sessions.ports import SessionPorts, reaching
from hiveyard.engine.sessions.request import SpawnRequest, request_of
from hiveyard.engine.sessions.start_point import StartPoint, rename_branch
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.session_door import open_session_door
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.terminal_runner import GRACE, TerminalRunner
from hiveyard.engine.turns.turn_tracker import TurnTracker
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.engine.turns.watchdog import watch_disk
from hiveyard.engine.workspace.collect import collect_work
from hiveyard.engine.workspace.directory import GUEST_REPO
from hiveyard.kit.group import first, together
from hiveyard.store import lineage, views
from hiveyard.store.views import SessionRow

T = TypeVar("T")
log = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds until a step is tried again for which the journal could not be written, or the way into the guest broke."""
TRIES = 24
"""Times in a row that going into the guest breaks until its machine is taken for lost."""
HEARING = 15.0
"""Seconds that are waited for the end of what is heard of a program that was ended: its guest can hold it back."""
HURRIED = 15.0
"""Seconds for that, and for collecting the work, when the disk fills up."""


class SessionRunner:
    """A running session.

    `stop` is asked to end its machine; `over` is set when nothing works on the session any more; cancelling `scope`
    detaches from it, as a dying daemon would. `terminal_runner` exists once the machine is ready (`ready` is set);
    `begun` is set once the journal says that the agent's program runs. `changing` is held while the machine is paused,
    unpaused or replaced. `on_turn_over` is called at the end of each turn and must return at once.

    It has many methods because each step of a session is one.
    """

    def __init__(
        self, id: str, resources: Resources, on_turn_over: Callable[[SessionRunner], None] = lambda runner: None
    ) -> None:
        self.id = id
        self.stop = Stop()
        self.over = anyio.Event()
        self.ready = anyio.Event()
        self.begun = anyio.Event()
        self.changing = anyio.Lock()
        self.door: Door | None = None
        self._on_turn_over = on_turn_over
        self.scope = anyio.CancelScope()
        self.terminal_runner: TerminalRunner | None = None
        self.reach: SessionPorts | None = None
        self.lease: MachineLease | None = None
        self._leave = anyio.CancelScope()
        self._frozen: anyio.Event | None = None
        self._outside = anyio.Event()
        self._laid = False
        self._collected = False
        self._r = resources
        self._event_log = resources.event_log
        self._workspace = resources.workspace(id)

    async def run(self) -> None:
        """Be there until the session stops, and journal why. Raises only for cancellation: then the daemon goes down,
        and the session goes on with the next one."""
        try:
            ends = await self.patiently(self._ending)
        finally:
            self._outside.set()
        await self.patiently(lambda: self._event_log.record(self.id, *ends))

    async def patiently(self, step: Callable[[], Awaitable[T]]) -> T:
        """The answer of a step, which is repeated for as long as the journal cannot be written."""
        while True:
            try:
                return await step()
            except StoreUnusable as error:
                log.error("session %s waits for the journal: %s", self.id, error.message)
                await self._r.clock.sleep(PATIENCE)

    # --- beginning ---------------------------------------------------------------------------------------------------

    async def _work(self) -> str:
        """Be there; returns why it ended."""
        session = await self._session()
        # Not to be abandoned: who stops what was just rewound finds it where it was taken back to.
        beginning = await self._lay(session)
        request = request_of(session)
        async with open_session_door(self._r, session, request, on_budget=self._budget_spent) as self.door:
            await self.heed_budget()  # what was set while there was no door to tell
            with nullcontext() if session.phase is Phase.RUNNING else self.stop.cancel_on_request():
                lease = await self._settle(session, request, beginning)
            self.lease = lease
            async with reaching(session, lease.provider, self._r, wanted=request.port) as self.reach:
                self.terminal_runner = await self._terminal_runner(request, lease)
                self.ready.set()
                return await self._inhabit(lease, self.terminal_runner)

    async def _lay(self, session: SessionRow) -> StartPoint:
        """Where it begins; its files are those of there when this returns."""
        beginning = await self._event_log.read(lambda conn: StartPoint.of(conn, self.id))
        if beginning.rewound is not None and not self._laid:
            await self._release(session)
            await beginning.lay(self._workspace)
        self._laid = True
        return beginning

    async def _settle(self, session: SessionRow, request: SpawnRequest, beginning: StartPoint) -> MachineLease:
        """Have the machine, ready. One that is there is used."""
        if session.phase is Phase.RUNNING:
            return await self._found(session)
        if session.phase in (Phase.CREATED, Phase.STOPPED):
            await self._event_log.record(self.id, SessionPreparing())
        provisioner = Provisioner(self.id, request, self._r, image=beginning.image, shape=beginning.shape)
        await provisioner.take()
        provider = await self._place(session, request)
        lease = provisioner.lease(provider, await provisioner.image(provider))
        async with self._event_log.phase(self.id, "boot"):
            await lease.start(beginning.snapshot)
        return lease

    async def _found(self, session: SessionRow) -> MachineLease:
        """The machine of one that runs, as it is. A new daemon makes nothing for it: what could not be made again, for
        want of memory or of an image, would end what still lives. Raises MachineLost."""
        assert session.provider is not None
        provider = self._r.providers[session.provider]
        lease = MachineLease(self.id, provider, None, self._event_log)
        if not await lease.alive():
            raise MachineLost(f"{lease.name} went down while nobody was watching")
        if session.activity is Activity.PAUSED:
            self._frozen = anyio.Event()
            self.begun.set()
        elif isinstance(provider, Pauses):
            # A daemon that was killed while it took a snapshot left it standing still.
            await provider.resume(lease.name)
        return lease

    async def _place(self, session: SessionRow, request: SpawnRequest) -> Provider:
        """Decide once where the session runs."""
        if session.tier is not None and session.provider is not None:
            return self._r.providers[session.provider]
        choice = await choose(request.provider or self._r.settings.provider, self._r.providers)
        placed = SessionPlaced(provider=choice.provider.name, tier=choice.provider.tier.value, why=choice.why)
        await self._event_log.record(self.id, placed)
        return choice.provider

    async def _terminal_runner(self, request: SpawnRequest, lease: MachineLease) -> TerminalRunner:
        conversation = await self._event_log.read(lambda conn: lineage.conversation(conn, self.id))
        rows = await self._event_log.read(lambda conn: views.turns(conn, self.id))
        agent = terminal_agent(request.agent or self._r.settings.agent)
        return TerminalRunner(
            session=self.id,
            agent=agent,
            turn=turn_of(request, self._workspace, lease.provider.capabilities.door_url, conversation),
            tracker=TurnTracker(agent.name, rows, conversation),
            prompts=Prompts(self._workspace.prompts),
            resources=self._r,
            on_turn_over=partial(self._on_turn_over, self) if request.snapshots == "turns" else lambda: None,
        )

    # --- being there -------------------------------------------------------------------------------------------------

    async def _inhabit(self, lease: MachineLease, terminal_runner: TerminalRunner) -> str:
        """Be in the guest until the program ends, and outside of it while the machine is frozen."""
        tries = 0
        while True:
            while (frozen := self._frozen) is not None:
                self._outside.set()
                await frozen.wait()
            self._outside = anyio.Event()
            with anyio.CancelScope() as self._leave:
                try:
                    async with lease.guest() as guest:
                        tries = 0
                        return await self._attend(guest, terminal_runner)
                except GuestDisconnected as error:
                    # Only the way in broke, and the agent goes on: so does whoever listens to it.
                    if (tries := tries + 1) == TRIES:
                        raise
                    log.warning("session %s: %s; going in again", self.id, error.message)
                    await self._r.clock.sleep(PATIENCE)

    async def _attend(self, guest: Guest, terminal_runner: TerminalRunner) -> str:
        fresh = (await self._session()).phase is Phase.PREPARING
        if fresh:
            with self.stop.cancel_on_request():
                await self._push(guest)
        info = await terminal_runner.begin(guest, fresh=fresh)
        if fresh:
            await self._event_log.record(self.id, SessionRunning())
        self.begun.set()
        async with together() as group:
            group.start_soon(self._end_when_asked, guest, terminal_runner, group.cancel_scope, name="stop")
            group.start_soon(self._watch_disk, name="watch the disk")
            await terminal_runner.follow(guest, info)
            group.cancel_scope.cancel()
        reason = await self._why(guest, terminal_runner)
        await self._collect(guest)
        return reason

    async def _push(self, guest: Guest) -> None:
        """Put the repository into the guest, unless it lies there from an earlier stay."""
        session = await self._session()
        forked = await self._event_log.read(lambda conn: lineage.pending_start(conn, self.id))
        went_along = isinstance(forked, SessionForked) and forked.live
        if went_along or await guest.exists(GUEST_REPO):
            if isinstance(forked, SessionForked) and session.branch is not None:
                await rename_branch(guest, forked.branch, session.branch)
            return
        assert session.base is not None and session.branch is not None
        async with self._event_log.phase(self.id, "push"):
            origin, shared = self._workspace.origin, self._workspace.shared
            async with self._event_log.progress(self.id, "giving the repository to the machine") as report:
                await repository.push(guest, origin, shared, base=session.base, branch=session.branch, report=report)

    async def _end_when_asked(
        self, guest: Guest, terminal_runner: TerminalRunner, attending: anyio.CancelScope
    ) -> None:
        """Have the program ended when that is asked for, and `attending` soon after: in the guest anybody can stop what
        tells us of it."""
        hurried = isinstance(await self.stop.wait(), DiskReserve)
        if hurried:
            attending.deadline = anyio.current_time() + HURRIED
        try:
            # A disk that fills up leaves no time for anything.
            await terminal_runner.end(guest, grace=0.0 if hurried else GRACE)
        except MachineLost:
            raise
        except HiveyardError as error:
            log.warning("session %s: its program could not be ended: %s", self.id, error.message)
        attending.deadline = min(attending.deadline, anyio.current_time() + HEARING)

    async def _watch_disk(self) -> None:
        await watch_disk(self._r.clock, self._r.settings, self._workspace.root, self.stop)

    async def _why(self, guest: Guest, terminal_runner: TerminalRunner) -> str:
        if self.stop.reason is not None:
            return self.stop.reason.advice
        code = (await terminal_runner.end(guest)).exit_code
        how = "is gone" if code is None else f"ended with exit code {code}"
        return f"the agent's program {how}"

    async def _collect(self, guest: Guest) -> None:
        """Bring the work out while there is a machine; when that fails, it still lies in the session's directory."""
        try:
            async with self._r.collecting(self.id):
                await self.collect_work(guest)
            self._collected = True
        except StoreUnusable:
            raise
        except HiveyardError as error:
            message = f"the work was not collected, its files are kept: {error.message}"
            await self._event_log.record(self.id, Notice(message=message, code=error.code))

    async def collect_work(self, guest: Guest) -> None:
        """Collect the work while no other caller does. Raises CollectTimeout, sooner when the disk fills up."""
        async with together() as group:
            group.start_soon(self._limit_when_asked, group.cancel_scope, name="limit")
            await collect_work(self.id, guest, self._r)
            group.cancel_scope.cancel()
            return
        raise CollectTimeout(f"collecting took longer than {HURRIED:g}s while the disk filled up, and was stopped")

    async def _limit_when_asked(self, collecting: anyio.CancelScope) -> None:
        if isinstance(await self.stop.wait(), DiskReserve):
            collecting.deadline = anyio.current_time() + HURRIED

    # --- freezing ----------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        return self._frozen is not None

    def hold(self) -> None:
        """Leave the guest as soon as may be, and say nothing more to the agent."""
        self._frozen = self._frozen or anyio.Event()
        self._leave.cancel()

    async def freeze(self) -> None:
        """Leave the guest, which may be frozen when this returns."""
        self.hold()
        await self._outside.wait()

    def thaw(self) -> None:
        """Go in again."""
        if self._frozen is not None:
            self._frozen.set()
            self._frozen = None

    # --- ending ------------------------------------------------------------------------------------------------------

    async def _ending(self) -> list[AnyBody]:
        """Be there; the events that end it. Raises StoreUnusable."""
        try:
            reason = await self._work()
        except Exception as raised:
            error = first(raised)
            if isinstance(error, StoreUnusable):
                raise error from raised
            if not isinstance(error, HiveyardError):
                log.exception("session %s", self.id)
                error = OrchestrationError(f"{type(error).__name__}: {error}", hint="see the daemon's log")
            return await self._given_up(error)
        return await self._ended(reason, None)

    async def _given_up(self, error: HiveyardError) -> list[AnyBody]:
        """It cannot go on; what there is of it is kept, so that it can be resumed. Without a repository there is
        nothing to resume."""
        if error is self.stop.reason:
            return await self._ended(error.advice, None)
        if self.lease is not None and isinstance(error, MachineLost):
            await self.lease.failed(error)
        if (await self._session()).base is None:
            return [*await self._cleared(), SessionFailed(failure=as_failure(error))]
        return await self._ended(error.message, as_failure(error))

    async def _ended(self, reason: str, failure: Failure | None) -> list[AnyBody]:
        for number, body in (await self._tracker()).abort(failure):
            await self._event_log.record(self.id, body, turn=number)
        collected = await self._is_out()
        async with self._event_log.phase(self.id, "release"):
            problems = await self._cleared()
        return [*problems, *await self._taken_back(), SessionStopped(reason=reason, collected=collected)]

    async def _is_out(self) -> bool:
        """Whether all that was done in it was brought out: now, or before it was to run again and did not."""
        if (await self._session()).phase is Phase.RUNNING:
            return self._collected
        return await self._event_log.read(lambda conn: lineage.is_collected(conn, self.id))

    async def _tracker(self) -> TurnTracker:
        """Its turns; also of one whose machine was found dead, so that nobody sat down."""
        if self.terminal_runner is not None:
            return self.terminal_runner.tracker
        session = await self._session()
        rows = await self._event_log.read(lambda conn: views.turns(conn, self.id))
        return TurnTracker(session.agent, rows, None)

    async def _cleared(self) -> list[AnyBody]:
        """Remove the machine, if there is one. What keeps it from going is said, not raised: recovery tries again."""
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

    async def _taken_back(self) -> list[AnyBody]:
        """Carry out a rewind that was not, and say it when that cannot be: with its end it counts no more."""
        try:
            if not self._laid:
                await (await self._event_log.read(lambda conn: StartPoint.of(conn, self.id))).lay(self._workspace)
        except StoreUnusable:
            raise
        except (HiveyardError, OSError) as error:
            log.exception("session %s: its files could not be taken back", self.id)
            return [Notice(message=f"the files are not those of the snapshot that it was taken back to: {error}")]
        return []

    # --- small things ------------------------------------------------------------------------------------------------

    async def until(self, event: anyio.Event) -> None:
        """Wait for one of its events, or for its end."""
        async with anyio.create_task_group() as group:

            async def either(event: anyio.Event) -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(either, event)
            group.start_soon(either, self.over)

    async def settled(self, phase: Phase) -> TerminalRunner:
        """Return the terminal runner. A session that runs already is only found again by a new daemon: wait for that.
        Raises SessionNotRunning for one that is being prepared."""
        if phase is Phase.RUNNING:
            await self.until(self.ready)
        if self.terminal_runner is None:
            raise SessionNotRunning("its machine is not ready yet", hint="try again in a moment; hv list")
        return self.terminal_runner

    async def heed_budget(self) -> None:
        """Let its door know what the journal says that it may spend."""
        session = await self._session()
        if self.door is not None:
            await self.door.limit(request_of(session).budget_usd)

    def _budget_spent(self) -> None:
        self.stop.request(BudgetSpent("its budget is spent", hint=f"hv resume {self.id} --budget DOLLARS"))

    async def _session(self) -> SessionRow:
        return await self._event_log.read(lambda conn: views.session(conn, self.id))
