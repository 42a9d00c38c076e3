"""Boot an orchestrator's machines, from an image or a snapshot, with directories and a door of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import BadInput, ProviderError
from hiveyard.core.machines import Machine, MachineSpec, WorkspaceKind
from hiveyard.core.ports import Agent, Forks, Provider, Snapshots
from hiveyard.kit.clock import Clock
from hiveyard.kit.copying import copy_tree
from hiveyard.kit.secret import Secret
from hiveyard.library import events
from hiveyard.library.doors import MachineDoors
from hiveyard.library.scratch import Scratch, remove_directory
from hiveyard.library.snapshot import Snapshot


class MachineBoot:
    """Boots machines and removes them. It knows the directories of each machine."""

    def __init__(
        self, provider: Provider, agent: Agent, doors: MachineDoors, emit: events.Listener, clock: Clock
    ) -> None:
        self._provider = provider
        self._agent = agent
        self._doors = doors
        self._emit = emit
        self._clock = clock
        self._scratch = Scratch()
        self._filled_sessions: dict[str, Path] = {}

    @asynccontextmanager
    async def attempt(self, name: str) -> AsyncIterator[None]:
        """Empty the caller's session directory if a machine for which it was filled is removed within the block.

        The same boot can then be tried again."""
        try:
            yield
        finally:
            self._filled_sessions.pop(name, None)

    async def boot(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, origin: Snapshot | None = None
    ) -> Machine:
        """Make a machine and return it ready. Raises ProviderError, DoorError, CredentialsError."""
        started = self._clock.monotonic()
        snapshot = origin.name if origin else ""
        self._emit(
            events.BootStarted(machine=name, provider=self._provider.name, image=spec.image.name, snapshot=snapshot)
        )
        full_spec = await self._with_directories(name, spec, placeholder, origin.session if origin else None)
        machine = await self._make(name, full_spec, snapshot)
        self._emit(events.BootReady(machine=name, seconds=self._clock.monotonic() - started))
        return machine

    async def snapshot(self, name: str, spec: MachineSpec, requested: Snapshot, *, temporary: bool = False) -> Snapshot:
        """Take a snapshot of a machine with its session directory, and let the machine continue.

        A session directory that the machine shares is copied to the `session` of `requested`, or to a directory of
        ours; other snapshots contain the session's files. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        if self._provider.capabilities.workspace is not WorkspaceKind.DIRECTORY:
            await self._provider.snapshot(name, requested.name, temporary=temporary)
            return requested
        source = spec.session or self._scratch.path(name, "session")
        if source is None:
            raise BadInput(f"the session directory of {name} is not known here", hint="pass it as MachineSpec.session")
        copy_target = requested.session or self._scratch.directory(requested.name) / "session"

        async def copy() -> None:
            await _copy(source, copy_target)

        await self._provider.snapshot(name, requested.name, copy, temporary=temporary)
        return replace(requested, session=copy_target)

    async def fork(self, parent: str, names: Sequence[str], spec: MachineSpec) -> dict[str, Machine]:
        """Make machines that continue from the current state of `parent`, in one step of the provider. Raises
        ProviderError."""
        assert isinstance(self._provider, Forks)
        started = self._clock.monotonic()
        details = {"provider": self._provider.name, "image": spec.image.name}
        for name in names:
            self._emit(events.BootStarted(machine=name, parent=parent, **details))
        machines = await self._provider.fork(parent, names, spec)
        for name in names:
            self._emit(events.BootReady(machine=name, seconds=self._clock.monotonic() - started))
        return {machine.name: machine for machine in machines}

    async def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove a snapshot and its copy of the session directory. An absent one is a success. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        try:
            await self._provider.remove_snapshot(snapshot.name)
        finally:
            if snapshot.session is not None:
                await remove_directory(snapshot.session)
            await self._scratch.remove(snapshot.name)

    async def terminate(self, name: str) -> None:
        """Remove a machine and everything that was made for it. An absent one is a success. Raises ProviderError."""
        await self._provider.terminate(name)
        await self._doors.close(name)
        await self._scratch.remove(name)
        if (filled := self._filled_sessions.pop(name, None)) is not None:
            await _recreate(filled)

    async def _make(self, name: str, spec: MachineSpec, snapshot: str) -> Machine:
        if snapshot and isinstance(self._provider, Snapshots):
            return await self._provider.boot_from(snapshot, name, spec)
        await self._provider.prepare(
            spec.image, spec.shape, lambda line: self._emit(events.BootProgress(machine=name, line=line))
        )
        return await self._provider.boot(name, spec)

    async def _with_directories(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, session: Path | None
    ) -> MachineSpec:
        """Return the spec with directories of the machine's own, and open its door.

        One directory is for the session, where process managers keep their files, unless the spec or another host has
        one. The other is for the door. `session` is the initial content of the first."""
        shares = self._provider.capabilities.workspace is WorkspaceKind.DIRECTORY
        needed = ["session"] if shares and spec.session is None else []
        directories = self._scratch.make(name, needed if placeholder is None else [*needed, "door"])
        session_dir = spec.session or directories.get("session")
        if session is not None and session_dir is not None:
            await _make_way(session_dir)
            if spec.session is not None:
                self._filled_sessions[name] = session_dir
            await _copy(session, session_dir)
        if placeholder is not None:
            await self._doors.open(name, directories["door"], placeholder, self._agent.protocols)
        return replace(spec, session=session_dir, door=directories.get("door", spec.door))


async def _make_way(target: Path) -> None:
    """Remove an empty directory at the target of a copy. Raises ProviderError."""
    try:
        target.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ProviderError(f"the session directory {target} cannot be replaced by a copy: {error.strerror}") from error


async def _recreate(target: Path) -> None:
    """Remove a directory with its content and make it again. Raises ProviderError."""
    await remove_directory(target)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ProviderError(f"the session directory {target} was not recreated: {error.strerror}") from error


async def _copy(source: Path, target: Path) -> None:
    try:
        await anyio.to_thread.run_sync(copy_tree, source, target)
    except OSError as error:
        words = f"the session directory {source} was not copied to {target}: {error.strerror}"
        raise ProviderError(words) from error
