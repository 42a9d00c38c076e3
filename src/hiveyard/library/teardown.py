"""How machines of an orchestrator end: when they are asked to, when something failed, and when their time is over."""

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
from hiveyard.library.errors import logged, why
from hiveyard.library.lifetimes import Lifetimes
from hiveyard.library.secret_masks import SecretMasks

_REMOVAL_BUDGET = 120.0


class Teardown:
    """Removes machines with all that was made for them. `lifetimes` end those whose time is over."""

    def __init__(
        self, provider: Provider, booting: MachineBoot, masks: SecretMasks, tell: events.Listener, clock: Clock
    ) -> None:
        self._provider = provider
        self._booting = booting
        self._masks = masks
        self._tell = tell
        self.lifetimes = Lifetimes(clock, self._over)

    @asynccontextmanager
    async def all_on_failure(self, names: Sequence[str]) -> AsyncIterator[None]:
        """Machines that are being made: whatever comes out of the block ends them all."""
        async with AsyncExitStack() as made:
            for name in names:
                await made.enter_async_context(self.on_failure(events.PreparationFailed, name))
            yield

    @asynccontextmanager
    async def on_failure(
        self,
        failed: Callable[..., events.RuntimeEvent],
        name: str,
        kept: Callable[[BaseException], bool] = lambda _: False,
    ) -> AsyncIterator[None]:
        """Whatever comes out of the block is told, and ends the machine unless it is to be `kept`."""
        try:
            yield
        except BaseException as error:
            operation, code, reason = why(error)
            try:
                self._tell(failed(machine=name, operation=operation, code=code, reason=reason))
            finally:
                if kept(error):
                    self._tell(events.MachineKept(machine=name))
                else:
                    await self._give_up(name, error)
            raise

    async def terminate(self, name: str) -> None:
        """Absent is a success. Raises ProviderError."""
        await self._booting.end(name)
        self.lifetimes.forget(name)  # not before it is gone: one that stays has a time that ends
        self._masks.forget(name)
        self._tell(events.MachineTerminated(machine=name))

    def failed_alone(self, name: str, operation: str, error: HiveyardError) -> None:
        """Tell of a failure that has no caller to go to."""
        reason = self._masks.mask(name).text(error.message)
        self._tell(events.OperationFailed(machine=name, operation=operation, code=error.code, reason=reason))

    async def _give_up(self, name: str, error: BaseException) -> None:
        """Remove it, whether or not we are being cancelled; when that fails too, `error` says so."""
        left = f"it was not gone after {_REMOVAL_BUDGET:.0f}s"
        with anyio.CancelScope(shield=True), anyio.move_on_after(_REMOVAL_BUDGET):
            try:
                await self.terminate(name)
                return
            except HiveyardError as failed:
                left = self._masks.mask(name).text(failed.message)
                self.failed_alone(name, "terminate", failed)
        if isinstance(error, OrchestrationError):
            error.context["left"] = left
            error.hint = f"the machine {name} is still there: terminate it; {error.hint}"

    async def _over(self, name: str, action: TtlAction) -> None:
        """Its time is over. Nobody waits for this: what fails here may end nothing else."""
        mask = self._masks.mask(name)
        with logged(name, action, mask):
            self._tell(events.LifetimeOver(machine=name, action=action))
        with logged(name, action, mask):
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
            self.failed_alone(name, action, error)
