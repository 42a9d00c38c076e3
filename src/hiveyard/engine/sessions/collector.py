"""Bring the work of a session out of its machine, within the time that there is."""

from __future__ import annotations

import anyio

from hiveyard.core.errors import CollectTimeout, DiskReserve, HiveyardError, StoreUnusable
from hiveyard.core.events import Notice
from hiveyard.core.ports import Guest
from hiveyard.engine.resources import Resources
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.workspace.collect import collect_work
from hiveyard.engine.workspace.session_files import copy_error
from hiveyard.kit.group import together

DISK_FULL_TIMEOUT = 15.0
"""Seconds for collecting the work when the disk fills up."""
CANCEL_GRACE = 5.0
"""Seconds that collecting may still take when the user cancels a task: a result that is almost there is kept."""


class Collector:
    """Collects the work of one session, or of a task, whose only turn is `turn`. After `collect`, `collected` says
    whether all work was collected, and `problem` why it was not. The errors `lost` of a machine are always raised."""

    def __init__(
        self, id: str, resources: Resources, stop: Stop, turn: int | None, lost: tuple[type[HiveyardError], ...]
    ) -> None:
        self._id = id
        self._r = resources
        self._stop = stop
        self._turn = turn
        self._lost = lost
        self.collected = False
        self.problem: HiveyardError | None = None

    async def collect(self, guest: Guest) -> None:
        """Collect the work while the machine exists. If that fails, a notice says so: the files are still in the
        session's directory."""
        self.problem = None
        try:
            async with self._r.collect_lock(self._id):
                await self.work(guest)
            self.collected = True
        except (HiveyardError, OSError) as raised:
            if isinstance(raised, (StoreUnusable, *self._lost)):
                raise
            error = self.problem = copy_error(self._id, raised) if isinstance(raised, OSError) else raised
            files = self._r.workspace(self._id).files
            message = f"the work was not collected; its files are kept in {files}: {error.message}"
            await self._r.event_log.record(self._id, Notice(message=message, code=error.code))

    async def work(self, guest: Guest) -> None:
        """Collect the work while no other caller does. Raises CollectTimeout, sooner when the disk fills up, and
        Cancelled if a user cancels the task meanwhile."""
        if self._turn is None:
            await self._work(guest)
            return
        async with self._r.event_log.phase(self._id, "collect"):
            with self._stop.cancellable(CANCEL_GRACE):
                await self._work(guest)

    async def _work(self, guest: Guest) -> None:
        async with together() as group:
            group.start_soon(self._limit, group.cancel_scope, name="limit")
            await collect_work(self._id, guest, self._r, turn=self._turn)
            group.cancel_scope.cancel()
            return
        raise CollectTimeout(f"collecting took over {DISK_FULL_TIMEOUT:g}s while the disk filled up, and was stopped")

    async def _limit(self, collecting: anyio.CancelScope) -> None:
        if isinstance(await self._stop.wait(), DiskReserve):
            collecting.deadline = anyio.current_time() + DISK_FULL_TIMEOUT
