"""Start, adopt and release the machine of a task or session; each step is journaled before the next."""

from __future__ import annotations

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
from hiveyard.core.machines import Image, MachineSpec, MachineStatus
from hiveyard.core.ports import Guest, Provider, Snapshots
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.engine.workspace.session_files import SessionFiles
from hiveyard.store import journal, views

_GONE = (None, MachineStatus.STOPPED, MachineStatus.ERROR)
_THERE = (MachineStatus.BOOTING, MachineStatus.READY, MachineStatus.STOPPING)


def machine_name(session: str) -> str:
    """Return the name of a session's machine. The name is the only handle, so it is derived from the session's id."""
    return f"hv-{session}"


class MachineLease:
    """A lease on the machine `hv-<session>` of one provider. Every call is safe to repeat after a crash.

    Without a `spec` and the session's `files` the machine cannot be started."""

    def __init__(
        self,
        session: str,
        provider: Provider,
        spec: MachineSpec | None,
        event_log: EventLog,
        files: SessionFiles | None = None,
    ) -> None:
        self.session = session
        self.name = machine_name(session)
        self.provider = provider
        self._spec = spec
        self._event_log = event_log
        self._files = files

    @property
    def image(self) -> Image | None:
        """The image of a machine that can be started."""
        return self._spec.image if self._spec is not None else None

    async def start(self, snapshot: str | None = None) -> None:
        """Start the machine and wait until it is ready; boot it from a live snapshot if one is named. Raises as `boot`,
        after the failure is journaled."""
        assert self._spec is not None and self._files is not None
        await self._transition(MachineBooting(machine=self.name, provider=self.provider.name), *_GONE)
        started = self._event_log.clock.monotonic()
        try:
            spec = await self._files.provide(self._spec)
            if snapshot is None:
                await self.provider.boot(self.name, spec)
            else:
                assert isinstance(self.provider, Snapshots)
                await self.provider.boot_from(snapshot, self.name, spec)
        except HiveyardError as error:
            await self.failed(error)
            raise
        seconds = self._event_log.clock.monotonic() - started
        await self._transition(MachineReady(machine=self.name, seconds=seconds), MachineStatus.BOOTING)

    async def alive(self) -> bool:
        """Return whether the backend reports the machine as ready."""
        try:
            machine = await self.provider.get(self.name)
        except NoSuchMachine:
            return False
        return machine.status is MachineStatus.READY

    def guest(self) -> AbstractAsyncContextManager[Guest]:
        return self.provider.guest(self.name)

    async def failed(self, error: HiveyardError) -> None:
        """Journal that the machine cannot be used any more."""
        await self._transition(MachineFailed(machine=self.name, failure=as_failure(error)), *_THERE)

    async def release(self) -> None:
        """Remove the machine; absent is a success."""
        if await self._event_log.read(lambda conn: views.find_machine(conn, self.name)) is None:
            return
        await self._transition(
            MachineStopping(machine=self.name), MachineStatus.BOOTING, MachineStatus.READY, MachineStatus.ERROR
        )
        await self.provider.terminate(self.name)
        await self._transition(MachineStopped(machine=self.name), MachineStatus.STOPPING)

    async def _transition(self, body: AnyBody, *when: MachineStatus | None) -> None:
        """Journal a transition if the machine is in one of the states `when`. Both happen in one transaction, because
        two callers may release the same machine at once."""
        now = self._event_log.clock.now()

        def write(conn: Connection) -> None:
            row = views.find_machine(conn, self.name)
            if (row.status if row else None) in when:
                journal.record(conn, self.session, body, at=now)

        await self._event_log.store.write(write)
