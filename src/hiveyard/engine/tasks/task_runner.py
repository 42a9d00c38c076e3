"""Run the session of a task: one turn, then its result, then its end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import cast

from hiveyard.agents import by_name
from hiveyard.core.errors import (
    BudgetSpent,
    Cancelled,
    CannotExecute,
    CommandTimeout,
    HiveyardError,
    MachineLost,
    ProcessError,
)
from hiveyard.core.events import (
    AnyBody,
    Outcome,
    SessionFailed,
    SessionFinished,
    SessionRunning,
    SessionStopped,
    TaskAssigned,
    TaskCancelAsked,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskStarted,
    TurnEnded,
)
from hiveyard.core.ports import Guest
from hiveyard.door.door import Door
from hiveyard.engine.placement.machine_lease import MachineLease, machine_name
from hiveyard.engine.placement.provider_choice import Choice
from hiveyard.engine.sessions.ports import SessionPorts
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.session_runner import SessionRunner
from hiveyard.engine.tasks.request import TaskRequest, from_json
from hiveyard.engine.turns.agent_runner import AgentRunner
from hiveyard.engine.turns.one_shot_runner import FIRST, UNKNOWN, OneShotRunner
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.turn_queue import TurnQueue
from hiveyard.engine.turns.turn_spec import turn_spec
from hiveyard.engine.turns.verdict import Evidence, as_failure, judge
from hiveyard.engine.turns.watchdog import Liveness
from hiveyard.store import views
from hiveyard.store.phases import cancelled_in_time
from hiveyard.store.views import SessionRow, TurnRow


class TaskRunner(SessionRunner):
    """A running task. A turn that has started is not aborted any more: its work is collected, then it is judged. It has
    many methods because it says of many steps of a session's run what a task adds to them."""

    stop_word = "cancelled"
    only_turn = FIRST
    _budget = 0.0
    # The guest is lost, or so full that no program can be started in it.
    lost = (MachineLost, ProcessError, CannotExecute, CommandTimeout)

    def stop_asked(self, reason: str) -> AnyBody:
        return TaskCancelAsked()

    # --- the steps ---------------------------------------------------------------------------------------------------

    async def _work(self) -> str:
        return "" if await self._ended() is not None else await super()._work()

    def _placed(self, choice: Choice) -> AnyBody:
        provider = choice.provider
        return TaskAssigned(
            provider=provider.name, tier=provider.tier.value, machine=machine_name(self.id), why=choice.why
        )

    def _begun(self) -> list[AnyBody]:
        return [SessionRunning(), TaskStarted()]

    def _phase(self, name: str) -> AbstractAsyncContextManager[None]:
        return self._event_log.phase(self.id, name)

    def _open_ports(
        self, session: SessionRow, lease: MachineLease, request: SpawnRequest
    ) -> AbstractAsyncContextManager[SessionPorts | None]:
        return nullcontext()

    async def _make_agent_runner(self, request: SpawnRequest, lease: MachineLease, door: Door) -> AgentRunner:
        self._budget = request.budget_usd or 0.0
        task, agent = await self._request(), by_name(request.agent or self._r.settings.agent)
        turn = turn_spec(request, self._workspace, lease.provider.capabilities.door_url, name=f"turn-{FIRST}")
        version = lease.image.programs.get(agent.program, "") if lease.image is not None else ""
        return OneShotRunner(
            session=self.id,
            agent=agent,
            turn=replace(turn, command=_with_stderr(turn.command)),
            queue=TurnQueue(agent.name, await self._turns(), None),
            prompts=Prompts(self._workspace.prompts),
            resources=self._r,
            program=f"{agent.program} {version}".strip(),
            timeout=task.timeout or self._r.settings.timeout,
            stop=self.stop,
            life=Liveness(self._r.clock, door),
        )

    async def _why(self, guest: Guest, agent_runner: AgentRunner) -> str:
        return ""  # the verdict says it

    def _budget_spent(self) -> None:
        self.stop.request(BudgetSpent(f"the budget of ${self._budget:.2f} is spent", hint="hv run --budget DOLLARS"))

    # --- the ends ----------------------------------------------------------------------------------------------------

    async def _conclude(self, reason: str) -> list[AnyBody]:
        ended = await self._ended() or await self._judge(None)
        if (await self._request()).keep:
            return _final_events(ended)
        async with self._phase("release"):
            problems = await self._remove_machine()
        return [*problems, *_final_events(ended)]

    async def _fail(self, error: HiveyardError) -> list[AnyBody]:
        if await self._turns():
            if await self._ended() is None:
                await self._judge(error)
            return await self._conclude("")
        problems = await self._remove_machine()
        if isinstance(error, Cancelled):
            return [*problems, SessionStopped(reason="cancelled"), TaskCancelled(reason=error.message)]
        failure = as_failure(error)
        return [*problems, SessionFailed(failure=failure), TaskFailed(failure=failure)]

    async def _judge(self, error: HiveyardError | None) -> TurnEnded:
        """Decide how the turn went, and journal it; `error` is why the task could not continue."""
        ended = self._one_shot.ended if self._one_shot is not None else UNKNOWN
        problem = self.collector.problem
        if not ended.is_known:
            gone = f"the agent's process in {machine_name(self.id)} is gone and left no exit code"
            problem = error or problem or MachineLost(gone)
        elif error is not None and not isinstance(error, self.lost):
            problem = error
        result = await self._event_log.read(lambda conn: views.result(conn, self.id))
        changed = result is not None and result.commits > 0
        outcome = judge(Evidence(ended.verdict, ended.exit_code, await self._stopped() or problem, changed))
        await self._event_log.record(self.id, outcome, turn=FIRST)
        return outcome

    async def _stopped(self) -> HiveyardError | None:
        """Return why the turn was stopped, if it was. Cancelling after the agent has ended does not stop the turn."""
        reason = self.stop.reason
        if isinstance(reason, Cancelled):
            return reason if await self._event_log.read(lambda conn: cancelled_in_time(conn, self.id)) else None
        return None if isinstance(reason, self.lost) else reason

    # --- helpers -----------------------------------------------------------------------------------------------------

    @property
    def _one_shot(self) -> OneShotRunner | None:
        return cast("OneShotRunner | None", self._held)

    async def _request(self) -> TaskRequest:
        return from_json((await self._event_log.read(lambda conn: views.task(conn, self.id))).request)

    async def _turns(self) -> list[TurnRow]:
        return await self._event_log.read(lambda conn: views.turns(conn, self.id))

    async def _ended(self) -> TurnEnded | None:
        """Return how the turn ended; None if it has not."""
        rows = await self._turns()
        if not rows or rows[-1].outcome is None:
            return None
        row = rows[-1]
        return TurnEnded(
            outcome=cast(Outcome, row.outcome),
            exit_code=row.exit_code,
            failure=row.failure,
            conversation=row.conversation,
        )


def _with_stderr(line: str | None) -> str | None:
    """Return a command line that prints its stderr on stdout: only stdout is journaled."""
    return None if line is None else f"exec 2>&1\n{line}"


def _final_events(ended: TurnEnded) -> list[AnyBody]:
    """Return the events that end a task after its turn."""
    if ended.outcome == "succeeded":
        return [SessionFinished(), TaskCompleted()]
    if ended.outcome == "cancelled":
        return [SessionStopped(reason="cancelled"), TaskCancelled()]
    assert ended.failure is not None
    return [SessionFailed(failure=ended.failure), TaskFailed(failure=ended.failure)]
