"""Stay connected to the guest of a session, except while its machine is paused."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from hiveyard.core.errors import GuestDisconnected
from hiveyard.core.ports import Guest
from hiveyard.engine.placement.machine_lease import MachineLease
from hiveyard.kit.clock import Clock

T = TypeVar("T")
log = logging.getLogger(__name__)
RETRY_DELAY = 5.0
"""Seconds until a connection that broke is made again."""
GUEST_RETRIES = 24
"""Times in a row that the connection to the guest may break until its machine counts as lost."""


class GuestConnection:
    """The connection of a session's runner. `frozen` says that the machine is paused, or about to be."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._scope = anyio.CancelScope()
        self._thawed: anyio.Event | None = None
        self._left = anyio.Event()

    @property
    def frozen(self) -> bool:
        return self._thawed is not None

    def hold(self) -> None:
        """Begin to disconnect."""
        self._thawed = self._thawed or anyio.Event()
        self._scope.cancel()

    async def freeze(self) -> None:
        """Disconnect. The machine may be paused when this returns."""
        self.hold()
        await self._left.wait()

    def thaw(self) -> None:
        """Connect again."""
        if self._thawed is not None:
            self._thawed.set()
            self._thawed = None

    def close(self) -> None:
        """Release those who wait in `freeze`: nothing will connect any more."""
        self._left.set()

    async def keep(self, lease: MachineLease, work: Callable[[Guest], Awaitable[T]]) -> T:
        """Return the result of `work`, which is begun again after each disconnection. Raises MachineLost."""
        tries = 0
        while True:
            while (thawed := self._thawed) is not None:
                self._left.set()
                await thawed.wait()
            self._left = anyio.Event()
            with anyio.CancelScope() as self._scope:
                try:
                    async with lease.guest() as guest:
                        tries = 0
                        return await work(guest)
                except GuestDisconnected as error:
                    # Only the connection broke. The agent continues, so connect again.
                    if (tries := tries + 1) == GUEST_RETRIES:
                        raise
                    log.warning("%s: %s; connecting again", lease.name, error.message)
                    await self._clock.sleep(RETRY_DELAY)
