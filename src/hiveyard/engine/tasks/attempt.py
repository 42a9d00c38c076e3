"""Run a task in a machine: boot, push, agent, collect; and recover the work if the machine is lost."""

from __future__ import annotations

from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

from hiveyard.agents import by_name
from hiveyard.core.errors import (
    BudgetSpent,
    Cancelled,
    CannotExecute,
    CommandTimeout,
    HiveyardError,
    MachineLost,
    ProcessError,
    StoreUnusable,
)
from hiveyard.core.events import (
    MachineEvent,
    Notice,
    Outcome,
    SessionEvent,
    SessionRunning,
    TaskEvent,
    TaskStarted,
    TurnEnded,
)
from hiveyard.core.machines import Image
from hiveyard.core.ports import Guest, Turn, Verdict
from hiveyard.core.states import Phase, TaskState
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.machine_lease import MachineLease
from hiveyard.engine.resources import Resources
from hiveyard.engine.snapshots.service import copy_error
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.turns.session_door import open_session_door
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.turn_runner import Ended, TurnRunner
from hiveyard.engine.turns.turn_spec import turn_spec
from hiveyard.engine.turns.verdict import Evidence, judge
from hiveyard.engine.turns.watchdog import Liveness
from hiveyard.engine.workspace.collect import collect, record_result
from hiveyard.store import journal, views
from hiveyard.store.phases import cancelled_in_time
from hiveyard.store.views import ResultRow, TurnRow

FIRST = 1
"""A task has one turn."""
CANCEL_GRACE = 5.0
"""Seconds that collecting may still take when the user cancels it: a result that is almost there is kept."""

# The guest is lost, or so full that no program can be started in it.
_BROKEN = (MachineLost, ProcessError, CannotExecute, CommandTimeout)
_UNKNOWN = Ended(Verdict(False), None)


class _Work(NamedTuple):
    """Whether there was any work; `problem` is the reason why it could not be collected."""

    changed: bool
    problem: HiveyardError | None = None


class TaskAttempt:
    """One attempt to run a task in a machine."""

    def __init__(
        self, id: str, request: TaskRequest, image: Image, lease: MachineLease, stop: Stop, resources: Resources
    ) -> None:
        self.id = id
        self._request = request
        self._image = image
        self._lease = lease
        self._stop = stop
        self._r = resources
        self._event_log = resources.event_log
        self._workspace = resources.workspace(id)
        self._agent = by_name(request.agent or resources.settings.agent)

    async def run(self) -> TurnEnded:
        """Run the remaining steps; return how the turn ended. Raises if the turn never started."""
        row = await self._turn_row()
        session = await self._event_log.read(lambda conn: views.session(conn, self.id))
        async with open_session_door(self._r, session, self._request, turn=FIRST, on_budget=self._budget_spent) as door:
            life = Liveness(self._r.clock, door)
            try:
                return await self._work(row, life)
            except _BROKEN as error:
                return await self._rescue(error, life)

    async def _work(self, row: TurnRow | None, life: Liveness) -> TurnEnded:
        if row is not None and not await self._lease.alive():
            raise MachineLost(f"{self._lease.name} stopped while no daemon was running")
        with self._abort_until_started(row):
            if row is None:
                await self._wait_for_memory()
            async with self._event_log.phase(self.id, "boot"):
                await self._lease.start()
        async with self._lease.guest() as guest:
            with self._abort_until_started(row):
                await self._begin()
            async with self._event_log.phase(self.id, "agent"):
                ended = await self._turn(life).run(guest, row)
            work = await self._collect_or_notify(guest)
        return await self._judged(ended, changed=work.changed, problem=work.problem)

    async def _wait_for_memory(self) -> None:
        """Wait until the machine fits into memory beside those of other tasks. Raises NoMemory if it never will."""
        if self._lease.provider.capabilities.remote:
            return
        settings = self._r.settings
        wanted = self._request.memory_mib or settings.memory_mib
        fits = partial(capacity.fits, settings=settings, memory_mib=wanted, excluding=self.id)
        seen = await self._event_log.read(journal.last_seq)
        if await self._lease.claim(fits):
            return
        waits = f"waits until a machine of {wanted} MiB fits into this host's memory beside those of other tasks"
        await self._event_log.record(self.id, Notice(message=waits))
        async with aclosing(self._event_log.store.follow_pages(after=seen)) as pages:
            async for page in pages:
                ended = any(isinstance(event.body, MachineEvent | SessionEvent | TaskEvent) for event in page)
                if ended and await self._lease.claim(fits):
                    return

    def _abort_until_started(self, row: TurnRow | None) -> AbstractContextManager[None]:
        """Return a block that a request to end cancels until the agent has started: then there is no work to lose."""
        return self._stop.cancel_on_request() if row is None else nullcontext()

    async def _begin(self) -> None:
        """Journal that the task has started."""
        task = await self._event_log.read(lambda conn: views.task(conn, self.id))
        if task.state is not TaskState.ASSIGNED:
            return
        session = await self._event_log.read(lambda conn: views.session(conn, self.id))
        begin = [SessionRunning()] if session.phase is Phase.PREPARING else []
        await self._event_log.record(self.id, *begin, TaskStarted())

    def _turn(self, life: Liveness) -> TurnRunner:
        settings = self._r.settings
        program = self._image.programs.get(self._agent.program, "")
        return TurnRunner(
            session=self.id,
            number=FIRST,
            agent=self._agent,
            turn=self._turn_spec(),
            program=f"{self._agent.program} {program}".strip(),
            manager=self._r.manager,
            event_log=self._event_log,
            settings=settings,
            host_path=self._workspace.root,
            timeout=self._request.timeout or settings.timeout,
            stop=self._stop,
            life=life,
        )

    def _turn_spec(self) -> Turn:
        door_url = self._lease.provider.capabilities.door_url
        turn = turn_spec(self._request, self._workspace, door_url, name=f"turn-{FIRST}")
        return replace(turn, command=_with_stderr(turn.command))

    async def _collect(self, guest: Guest) -> ResultRow:
        """Collect the branch and the patch from the guest, unless that is done. Raises Cancelled if a user cancels
        meanwhile."""
        if found := await self._result():
            return found
        try:
            async with self._event_log.phase(self.id, "collect"):
                with self._stop.cancellable(CANCEL_GRACE):
                    got = await collect(self.id, guest, self._r, aside=False)
        except OSError as error:
            raise copy_error(self.id, error) from error
        return await record_result(self.id, got, self._r, turn=FIRST)

    async def _collect_or_notify(self, guest: Guest) -> _Work:
        """Collect; if that fails, record a notice: the turn has ended all the same, and its files stay until the task
        is
        removed."""
        try:
            return _Work((await self._collect(guest)).commits > 0)
        except (StoreUnusable, *_BROKEN):
            raise
        except HiveyardError as error:
            message = f"the work was not collected, its files are kept in {self._workspace.files}: {error.message}"
            await self._event_log.record(self.id, Notice(message=message, code=error.code))
            return _Work(False, error)

    async def _judged(self, ended: Ended, *, changed: bool, problem: HiveyardError | None = None) -> TurnEnded:
        """Decide how the turn went, and journal it. A process that left no exit code and reported no success was lost
        with its machine."""
        if problem is None and ended.exit_code is None and not ended.verdict.ok:
            problem = MachineLost(f"the agent's process in {self._lease.name} is gone and left no exit code")
        stopped = await self._stopped()
        outcome = judge(Evidence(ended.verdict, ended.exit_code, stopped or problem, changed))
        await self._event_log.record(self.id, outcome, turn=FIRST)
        return outcome

    async def _stopped(self) -> HiveyardError | None:
        """Return why the turn was stopped, if it was. Cancelling after the agent has ended does not stop the turn."""
        reason = self._stop.reason
        if isinstance(reason, Cancelled):
            return reason if await self._event_log.read(lambda conn: cancelled_in_time(conn, self.id)) else None
        return reason

    async def _rescue(self, lost: HiveyardError, life: Liveness) -> TurnEnded:
        """Recover from a lost machine: start a new one on the session's directory, read the rest of the output, and
        collect the work."""
        row = await self._turn_row()
        if row is None:
            raise lost
        await self._lease.failed(lost)
        ended, changed, problem = _UNKNOWN, False, None
        try:
            await self._lease.provider.terminate(self._lease.name)
            await self._lease.start()
            async with self._lease.guest() as guest:
                ended = await self._read_rest(guest, row, life)
                changed = (await self._collect(guest)).commits > 0
        except StoreUnusable:
            raise
        except HiveyardError as error:
            message = f"the agent's work could not be collected: {error.message}"
            await self._event_log.record(self.id, Notice(message=message, code=error.code))
            problem = error
        if ended.exit_code is None and not ended.verdict.ok:
            problem = lost
        return await self._judged(ended, changed=changed, problem=problem)

    async def _read_rest(self, guest: Guest, row: TurnRow, life: Liveness) -> Ended:
        """Read the rest of the output of the agent's process."""
        try:
            return await self._turn(life).read_rest(guest, row)
        except ProcessError as error:
            message = f"the agent's last output could not be read: {error.message}"
            await self._event_log.record(self.id, Notice(message=message, code=error.code))
            return _UNKNOWN

    def _budget_spent(self) -> None:
        self._stop.request(
            BudgetSpent(f"the budget of ${self._request.budget_usd:.2f} is spent", hint="hv run --budget DOLLARS")
        )

    async def _turn_row(self) -> TurnRow | None:
        rows = await self._event_log.read(lambda conn: views.turns(conn, self.id))
        return rows[-1] if rows else None

    async def _result(self) -> ResultRow | None:
        return await self._event_log.read(lambda conn: views.result(conn, self.id))


def _with_stderr(line: str | None) -> str | None:
    """Return a command line that prints its stderr on stdout: only stdout is journaled."""
    return None if line is None else f"exec 2>&1\n{line}"


def turn_ended(row: TurnRow) -> TurnEnded | None:
    """Return how a stored turn ended; None if it has not."""
    if row.outcome is None:
        return None
    return TurnEnded(
        outcome=cast(Outcome, row.outcome),
        exit_code=row.exit_code,
        failure=row.failure,
        conversation=row.conversation,
    )
