"""Run a task from its request to its result, in steps that are safe to repeat.

A step reads the journal first and does only what is missing. So the same steps run a new task, continue one after the
daemon was killed, and collect the work after a machine was lost. When the daemon ends, machines and agents continue.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar

import anyio

from hiveyard.core.errors import Cancelled, HiveyardError, StoreUnusable
from hiveyard.core.events import (
    AnyBody,
    Notice,
    SessionFailed,
    SessionFinished,
    SessionPreparing,
    SessionStopped,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TurnEnded,
)
from hiveyard.core.ports import Provider
from hiveyard.core.states import Phase
from hiveyard.engine.placement.machine_lease import MachineLease, machine_name
from hiveyard.engine.placement.provider_choice import choose
from hiveyard.engine.placement.provisioner import Provisioner
from hiveyard.engine.resources import Resources
from hiveyard.engine.tasks.attempt import TaskAttempt, turn_ended
from hiveyard.engine.tasks.request import TaskRequest, from_json
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.kit.group import first
from hiveyard.store import views
from hiveyard.store.views import SessionRow, TaskRow, TurnRow

T = TypeVar("T")
log = logging.getLogger(__name__)
RETRY_PAUSE = 5.0
"""Seconds until a step is retried after the journal could not be written."""


class Job:
    """A running task. `stop` requests its end; `over` is set when it is no longer worked on; cancelling `scope` leaves
    it
    as the end of the daemon would."""

    def __init__(self, id: str, resources: Resources) -> None:
        self.id = id
        self.stop = Stop()
        self.over = anyio.Event()
        self.scope = anyio.CancelScope()
        self._r = resources
        self._event_log = resources.event_log
        self._workspace = resources.workspace(id)

    async def run(self) -> None:
        """Run the remaining steps and journal how the task ended. Raises only when cancelled: then the daemon ends, and
        the next one continues the task."""
        ends = await self._retrying(self._run_to_end)
        await self._retrying(lambda: self._event_log.record(self.id, *ends))

    async def _retrying(self, step: Callable[[], Awaitable[T]]) -> T:
        """Return the result of a step; repeat it while the journal cannot be written. A full disk must not lose a
        task's
        end, and the agent continues meanwhile."""
        while True:
            try:
                return await step()
            except StoreUnusable as error:
                log.error("task %s waits for the journal: %s", self.id, error.message)
                await self._r.clock.sleep(RETRY_PAUSE)

    async def _run_to_end(self) -> list[AnyBody]:
        """Run the remaining steps; return the events that end the task. Raises StoreUnusable."""
        try:
            return await self._work()
        except Exception as raised:
            error = first(raised)
            if isinstance(error, StoreUnusable):
                raise error from raised
            if not isinstance(error, HiveyardError):
                log.exception("task %s", self.id)
                error = HiveyardError(f"{type(error).__name__}: {error}", hint="see the daemon's log")
            return await self._aborted(error)

    async def _work(self) -> list[AnyBody]:
        request = from_json((await self._task()).request)
        row = await self._turn()
        ended = turn_ended(row) if row is not None else None
        if ended is None:
            ended = await self._run_turn(request, begun=row is not None)
        if request.keep:
            return _final_events(ended)
        async with self._event_log.phase(self.id, "release"):
            problems = await self._remove_machine()
        return [*problems, *_final_events(ended)]

    async def _run_turn(self, request: TaskRequest, *, begun: bool) -> TurnEnded:
        """Run the turn to its end. A turn that has started is not aborted any more: its work is collected."""
        provisioner = Provisioner(self.id, request, self._r)
        with nullcontext() if begun else self.stop.cancel_on_request():
            await self._take(provisioner)
            provider = await self._assign(request)
            image = await provisioner.image(provider)
            if not begun:
                await provisioner.check_out()
        lease = provisioner.lease(provider, image)
        return await TaskAttempt(self.id, request, image, lease, self.stop, self._r).run()

    async def _take(self, provisioner: Provisioner) -> None:
        """Copy the repository to the host's side of the session."""
        if (await self._session()).phase in (Phase.CREATED, Phase.STOPPED):
            await self._event_log.record(self.id, SessionPreparing())
        await provisioner.take()

    async def _assign(self, request: TaskRequest) -> Provider:
        """Choose the provider of the task, once."""
        task = await self._task()
        if task.provider is not None:
            return self._r.providers[task.provider]
        choice = await choose(request.provider or self._r.settings.provider, self._r.providers)
        await self._event_log.record(
            self.id,
            TaskAssigned(
                provider=choice.provider.name,
                tier=choice.provider.tier.value,
                machine=machine_name(self.id),
                why=choice.why,
            ),
        )
        return choice.provider

    # --- the ends ----------------------------------------------------------------------------------------------------

    async def _aborted(self, error: HiveyardError) -> list[AnyBody]:
        """Remove the machine of a task that cannot continue; return the events that end it."""
        problems = await self._remove_machine()
        if isinstance(error, Cancelled):
            return [*problems, SessionStopped(reason="cancelled"), TaskCancelled(reason=error.message)]
        failure = as_failure(error)
        return [*problems, SessionFailed(failure=failure), TaskFailed(failure=failure)]

    async def _remove_machine(self) -> list[AnyBody]:
        """Remove the machine, if there is one. A failure becomes a notice: recovery tries again."""
        task = await self._task()
        if task.provider is None:
            return []
        try:
            await MachineLease(self.id, self._r.providers[task.provider], None, self._event_log).release()
        except StoreUnusable:
            raise
        except HiveyardError as error:
            return [Notice(message=f"the machine could not be removed yet: {error.message}", code=error.code)]
        except OSError as error:
            log.exception("task %s: its machine could not be removed", self.id)
            return [Notice(message=f"the machine could not be removed yet: {error}")]
        return []

    # --- small things ------------------------------------------------------------------------------------------------

    async def _task(self) -> TaskRow:
        return await self._event_log.read(lambda conn: views.task(conn, self.id))

    async def _session(self) -> SessionRow:
        return await self._event_log.read(lambda conn: views.session(conn, self.id))

    async def _turn(self) -> TurnRow | None:
        rows = await self._event_log.read(lambda conn: views.turns(conn, self.id))
        return rows[-1] if rows else None


def _final_events(ended: TurnEnded) -> list[AnyBody]:
    """Return the events that end a task after its turn."""
    if ended.outcome == "succeeded":
        return [SessionFinished(), TaskCompleted()]
    if ended.outcome == "cancelled":
        return [SessionStopped(reason="cancelled"), TaskCancelled()]
    assert ended.failure is not None
    return [SessionFailed(failure=ended.failure), TaskFailed(failure=ended.failure)]
