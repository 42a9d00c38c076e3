"""How machines of an orchestrator come up: with directories and a door of their own, from an image or a snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import BadInput, ProviderError
from hiveyard.core.machines import Machine, MachineSpec
from hiveyard.core.ports import Agent, Forks, Provider, Snapshots
from hiveyard.kit.clock import Clock
from hiveyard.kit.copying import copy_tree
from hiveyard.kit.secret import Secret
from hiveyard.library import events
from hiveyard.library.doors import MachineDoors
from hiveyard.library.scratch import Scratch, removed
from hiveyard.library.snapshot import Snapshot


class MachineBoot:
    """Knows which machine has which directories, and closes and removes them with it."""

    def __init__(
        self, provider: Provider, agent: Agent, doorways: MachineDoors, tell: events.Listener, clock: Clock
    ) -> None:
        self._provider = provider
        self._agent = agent
        self._doorways = doorways
        self._tell = tell
        self._clock = clock
        self._scratch = Scratch()
        self._filled: dict[str, Path] = {}

    @asynccontextmanager
    async def attempt(self, name: str) -> AsyncIterator[None]:
        """A session directory of the caller's that is filled for a machine within the block is empty again when that
        machine ends within it, so that the same can be tried again."""
        try:
            yield
        finally:
            self._filled.pop(name, None)

    async def boot(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, origin: Snapshot | None = None
    ) -> Machine:
        """The machine, ready. Raises ProviderError, DoorError, CredentialsError."""
        begun = self._clock.monotonic()
        snapshot = origin.name if origin else ""
        self._tell(
            events.BootStarted(machine=name, provider=self._provider.name, image=spec.image.name, snapshot=snapshot)
        )
        whole = await self._furnished(name, spec, placeholder, origin.session if origin else None)
        machine = await self._made(name, whole, snapshot)
        self._tell(events.BootReady(machine=name, seconds=self._clock.monotonic() - begun))
        return machine

    async def keep(self, name: str, spec: MachineSpec, asked: Snapshot, *, temporary: bool = False) -> Snapshot:
        """Keep a machine as it stands, with its session directory, which is copied to where it is `asked`, or to a
        place of ours; it goes on. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        if self._provider.capabilities.remote:
            await self._provider.snapshot(name, asked.name, temporary=temporary)
            return asked
        source = spec.session or self._scratch.of(name, "session")
        if source is None:
            raise BadInput(f"the session directory of {name} is not known here", hint="give it as MachineSpec.session")
        kept = asked.session or self._scratch.room(asked.name) / "session"

        async def copy() -> None:
            await _copied(source, kept)

        await self._provider.snapshot(name, asked.name, copy, temporary=temporary)
        return replace(asked, session=kept)

    async def fork(self, parent: str, names: Sequence[str], spec: MachineSpec) -> dict[str, Machine]:
        """Machines that go on where `parent` stands, in the one step of their provider. Raises ProviderError."""
        assert isinstance(self._provider, Forks)
        begun = self._clock.monotonic()
        about = {"provider": self._provider.name, "image": spec.image.name}
        for name in names:
            self._tell(events.BootStarted(machine=name, parent=parent, **about))
        machines = await self._provider.fork(parent, names, spec)
        for name in names:
            self._tell(events.BootReady(machine=name, seconds=self._clock.monotonic() - begun))
        return {machine.name: machine for machine in machines}

    async def forget(self, snapshot: Snapshot) -> None:
        """Remove what `keep` made; absent is a success. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        try:
            await self._provider.remove_snapshot(snapshot.name)
        finally:
            if snapshot.session is not None:
                await removed(snapshot.session)
            await self._scratch.remove(snapshot.name)

    async def end(self, name: str) -> None:
        """Remove a machine and all that was made for it; absent is a success. Raises ProviderError."""
        await self._provider.terminate(name)
        await self._doorways.close(name)
        await self._scratch.remove(name)
        if (filled := self._filled.pop(name, None)) is not None:
            await _emptied(filled)

    async def _made(self, name: str, spec: MachineSpec, snapshot: str) -> Machine:
        if snapshot and isinstance(self._provider, Snapshots):
            return await self._provider.boot_from(snapshot, name, spec)
        await self._provider.prepare(
            spec.image, spec.shape, lambda line: self._tell(events.BootProgress(machine=name, line=line))
        )
        return await self._provider.boot(name, spec)

    async def _furnished(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, session: Path | None
    ) -> MachineSpec:
        """With directories of its own: one for the session, where process managers keep their files, unless the spec or
        another host has one; and one for its door, which is opened. `session` is what the first of them begins as."""
        shared = [] if spec.session is not None or self._provider.capabilities.remote else ["session"]
        made = self._scratch.make(name, shared if placeholder is None else [*shared, "door"])
        own = spec.session or made.get("session")
        if session is not None and own is not None:
            await _cleared(own)
            if spec.session is not None:
                self._filled[name] = own
            await _copied(session, own)
        if placeholder is not None:
            await self._doorways.open(name, made["door"], placeholder, self._agent.protocols)
        return replace(spec, session=own, door=made.get("door", spec.door))


async def _cleared(target: Path) -> None:
    """The way for a copy, where there is nothing, or an empty directory. Raises ProviderError."""
    try:
        target.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ProviderError(f"the session directory {target} cannot become a copy: {error.strerror}") from error


async def _emptied(target: Path) -> None:
    """Raises ProviderError."""
    await removed(target)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ProviderError(f"the session directory {target} was not made anew: {error.strerror}") from error


async def _copied(source: Path, target: Path) -> None:
    try:
        await anyio.to_thread.run_sync(copy_tree, source, target)
    except OSError as error:
        words = f"the session directory {source} was not copied to {target}: {error.strerror}"
        raise ProviderError(words) from error
