"""End an orchestrator's machines: on request, after a failure, and at the end of their time to live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from hiveyard.core.errors import HiveyardError, OrchestrationError
from hiveyard.core.machines import TtlAction
from hiveyard.core.ports import Pauses, Provider
from hiveyard.kit.clock import Clock
from hiveyard.library import events
from hiveyard.library.boot import MachineBoot
from hiveyard.library.errors import failure_details, log_errors
from hiveyard.library.lifetimes import Lifetimes
from hiveyard.library.secret_masks import SecretMasks

_REMOVAL_BUDGET = 120.0


class Teardown:
    """Removes machines with everything that was made for them. `lifetimes` end machines whose time is over."""

    def __init__(
        self, provider: Provider, machine_boot: MachineBoot, masks: SecretMasks, emit: events.Listener, clock: Clock
    ) -> None:
        self._provider = provider
        self._machine_boot = machine_boot
        self._masks = masks
        self._emit = emit
        self.lifetimes = Lifetimes(clock, self._lifetime_over)

    @asynccontextmanager
    async def terminate_all_on_failure(self, names: Sequence[str]) -> AsyncIterator[None]:
        """Terminate all machines that are being made if the block raises."""
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(self.terminate_on_failure(events.PreparationFailed, name))
            yield

    @asynccontextmanager
    async def terminate_on_failure(
        self,
        failure: Callable[..., events.RuntimeEvent],
        name: str,
        keep: Callable[[BaseException], bool] = lambda _: False,
    ) -> AsyncIterator[None]:
        """Report an exception of the block, and terminate the machine unless `keep` returns True."""
        try:
            yield
        except BaseException as error:
            operation, code, reason = failure_details(error)
            try:
                self._emit(failure(machine=name, operation=operation, code=code, reason=reason))
            finally:
                if keep(error):
                    self._emit(events.MachineKept(machine=name))
                else:
                    await self._remove(name, error)
            raise

    async def terminate(self, name: str) -> None:
        """Remove a machine. An absent one is a success. Raises ProviderError."""
        await self._machine_boot.terminate(name)
        self.lifetimes.cancel(name)  # only after the removal: a machine that could not be removed keeps its time limit
        self._masks.forget(name)
        self._emit(events.MachineTerminated(machine=name))

    def report_failure(self, name: str, operation: str, error: HiveyardError) -> None:
        """Emit an event for a failure that has no caller."""
        reason = self._masks.mask(name).text(error.message)
        self._emit(events.OperationFailed(machine=name, operation=operation, code=error.code, reason=reason))

    async def _remove(self, name: str, error: BaseException) -> None:
        """Remove a machine even if the task is cancelled. If this fails too, say so in `error`."""
        problem = f"it was not removed within {_REMOVAL_BUDGET:.0f}s"
        with anyio.CancelScope(shield=True), anyio.move_on_after(_REMOVAL_BUDGET):
            try:
                await self.terminate(name)
                return
            except HiveyardError as failure:
                problem = self._masks.mask(name).text(failure.message)
                self.report_failure(name, "terminate", failure)
        if isinstance(error, OrchestrationError):
            error.context["left"] = problem
            error.hint = f"the machine {name} still exists: terminate it; {error.hint}"

    async def _lifetime_over(self, name: str, action: TtlAction) -> None:
        """Run the action at the end of a machine's time. It has no caller, so its errors are only reported."""
        mask = self._masks.mask(name)
        with log_errors(name, action, mask):
            self._emit(events.LifetimeOver(machine=name, action=action))
        with log_errors(name, action, mask):
            await self._act(name, action)

    async def _act(self, name: str, action: TtlAction) -> None:
        try:
            if action == "terminate":
                await self.terminate(name)
            elif action == "pause" and isinstance(self._provider, Pauses):
                await self._provider.pause(name)
            else:
                await self._provider.stop(name)
        except HiveyardError as error:
            self.report_failure(name, action, error)
