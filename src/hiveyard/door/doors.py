"""Open the doors of sessions. They share the settings, keys, prices and connections to the vendors.

async with Doors(settings, keys, record) as doors:
    async with doors.open(session="s1", directory=path, placeholder=Secret("hv-…"), budget_usd=0.5) as door:
        ...  # the guest reaches door.path
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.core.usage import Usage
from hiveyard.door.broker import Broker
from hiveyard.door.budget import Budget
from hiveyard.door.descriptors import guest_connections, limit_accept_warnings
from hiveyard.door.door import NO_MOUNTS, Door
from hiveyard.door.keys import Keys
from hiveyard.door.listening import listening
from hiveyard.door.mounts import Mount
from hiveyard.door.prices import Prices
from hiveyard.door.quota import Quota
from hiveyard.door.settings import DoorSettings
from hiveyard.door.tape import Tape
from hiveyard.door.tape_recorder import Recorder
from hiveyard.door.upstream import Upstream
from hiveyard.door.usage_recorder import Record, UsageRecorder
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret

SOCKET = "door.sock"


class Doors:
    """An async context manager that opens doors. Close every door before it ends."""

    def __init__(
        self,
        settings: DoorSettings,
        keys: Keys,
        record: Record,
        *,
        prices: Prices | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._record = record
        self._prices = prices or Prices()
        self._clock = clock or SystemClock()
        self._broker = Broker(keys, settings, self._clock)
        self._upstream = Upstream(settings, self._broker)
        self._opened = AsyncExitStack()
        self._connections = Quota(guest_connections())
        self._bodies = Quota(settings.bodies_total_mib << 20)
        self._masked: tuple[Secret, ...] = ()
        self._mask = Mask(())
        self._mounts: dict[str, Callable[[str], Mount]] = {}

    def mount(self, prefix: str, make: Callable[[str], Mount]) -> None:
        """Serve an app at `prefix` of each door that is opened later. `make` returns it for a session."""
        self._mounts[prefix] = make

    async def __aenter__(self) -> Doors:
        group = await self._opened.enter_async_context(anyio.create_task_group())
        await self._opened.enter_async_context(self._upstream)
        self._opened.enter_context(limit_accept_warnings(self._clock))
        group.start_soon(anyio.to_thread.run_sync, self._prices.load, name="read the price list")
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._opened.aclose()

    @asynccontextmanager
    async def open(
        self,
        *,
        session: str,
        directory: Path,
        placeholder: Secret,
        account: str = "",
        inherited: Sequence[Secret] = (),
        budget_usd: float | None = None,
        spent: Usage | None = None,
        turn: int | None = None,
        tape: Tape | None = None,
        recorder: Recorder | None = None,
        on_budget: Callable[[], None] = lambda: None,
        mounts: Mapping[str, Mount] = NO_MOUNTS,
    ) -> AsyncIterator[Door]:
        """Open the door of a session at `directory/door.sock` until the block ends.

        A socket of an earlier daemon is replaced. `placeholder` is the key that the guest has; `inherited` are keys
        that its processes may still have from before they were forked. `account` names the account of keys.toml that
        pays; "" is the one without a name. A `budget_usd` of None means no limit; `spent` is the session's earlier
        usage. With a `tape` no request goes to a vendor. With a `recorder` each answer is recorded on a tape; the
        recorder stays open at the end. `on_budget` is called in the event loop when the budget is spent, and at each
        later request; it must return at once. `mounts` are apps that only this door serves, by path. Raises
        SocketPathTooLong, or the system's OSError.
        """
        usage_recorder = UsageRecorder(
            session,
            self._record,
            budget=Budget(budget_usd, spent or Usage()),
            prices=self._prices,
            on_budget=on_budget,
            clock=self._clock,
            turn=turn,
        )
        door = Door(
            path=directory / SOCKET,
            placeholders=(placeholder, *inherited),
            usage_recorder=usage_recorder,
            answers=self._upstream.of(account) if tape is None else tape,
            mask=self._current_mask,
            settings=self._settings,
            recorder=recorder,
            quota=self._bodies,
            mounts={**{prefix: make(session) for prefix, make in self._mounts.items()}, **mounts},
        )
        async with listening(door, door.path, self._settings, self._connections):
            yield door

    def _current_mask(self) -> Mask:
        """Return a mask for the current keys: the file of keys may have changed."""
        known = self._broker.known()
        if set(known) != set(self._masked):
            self._masked, self._mask = known, Mask(known)
        return self._mask
