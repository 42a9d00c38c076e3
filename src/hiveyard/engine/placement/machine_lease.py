"""The machine of one task: made, taken over, given up; each move journaled before the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError, NoSuchMachine
from hiveyard.core.events import (
    AnyBody,
    MachineBooting,
    MachineFailed,
    MachineReady,
    MachineStopped,
    MachineStopping,
)
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.core.ports import Guest, Provider, Snapshots
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.store import journal, views

_GONE = (None, MachineStatus.STOPPED, MachineStatus.ERROR)
_THERE = (MachineStatus.BOOTING, MachineStatus.READY, MachineStatus.STOPPING)


def machine_name(session: str) -> str:
    """A session's machine: the name is the only handle, so it follows from the work."""
    return f"hv-{session}"


class MachineLease:
    """The machine called `hv-<session>` on one provider. Every call is safe to repeat after a crash.

    Without a `spec` it cannot be made."""

    def __init__(self, session: str, provider: Provider, spec: MachineSpec | None, event_log: EventLog) -> None:
        self.session = session
        self.name = machine_name(session)
        self.provider = provider
        self._spec = spec
        self._event_log = event_log

    async def claim(self, fits: Callable[[Connection], bool]) -> bool:
        """Journal that it is about to be made, if it fits. True when that is journaled, or was before. Raises what
        `fits` raises."""
        body, now = MachineBooting(machine=self.name, provider=self.provider.name), self._event_log.clock.now()

        def write(conn: Connection) -> bool:
            row = views.find_machine(conn, self.name)
            if (row.status if row else None) not in _GONE:
                return True
            if not fits(conn):
                return False
            journal.record(conn, self.session, body, at=now)
            return True

        return await self._event_log.store.write(write)

    async def up(self, snapshot: str | None = None) -> None:
        """Have it ready, from a live snapshot when one is named. Raises what `boot` raises; the failure is journaled
        then."""
        assert self._spec is not None
        await self._move(MachineBooting(machine=self.name, provider=self.provider.name), *_GONE)
        start = self._event_log.clock.monotonic()
        try:
            if snapshot is None:
                await self.provider.boot(self.name, self._spec)
            else:
                assert isinstance(self.provider, Snapshots)
                await self.provider.boot_from(snapshot, self.name, self._spec)
        except HiveyardError as error:
            await self.failed(error)
            raise
        seconds = self._event_log.clock.monotonic() - start
        await self._move(MachineReady(machine=self.name, seconds=seconds), MachineStatus.BOOTING)

    async def alive(self) -> bool:
        """Whether the backend has it ready now."""
        try:
            machine = await self.provider.get(self.name)
        except NoSuchMachine:
            return False
        return machine.status is MachineStatus.READY

    def guest(self) -> AbstractAsyncContextManager[Guest]:
        return self.provider.guest(self.name)

    async def failed(self, error: HiveyardError) -> None:
        """Journal that it is of no more use."""
        await self._move(MachineFailed(machine=self.name, failure=as_failure(error)), *_THERE)

    async def release(self) -> None:
        """Remove it; absent is a success."""
        if await self._event_log.read(lambda conn: views.find_machine(conn, self.name)) is None:
            return
        await self._move(
            MachineStopping(machine=self.name), MachineStatus.BOOTING, MachineStatus.READY, MachineStatus.ERROR
        )
        await self.provider.terminate(self.name)
        await self._move(MachineStopped(machine=self.name), MachineStatus.STOPPING)

    async def _move(self, body: AnyBody, *when: MachineStatus | None) -> None:
        """Journal a move if the machine stands where the move begins. Both in one transaction: two may release the
        same machine at once."""
        now = self._event_log.clock.now()

        def write(conn: Connection) -> None:
            row = views.find_machine(conn, self.name)
            if (row.status if row else None) in when:
                journal.record(conn, self.session, body, at=now)

        await self._event_log.store.write(write)
