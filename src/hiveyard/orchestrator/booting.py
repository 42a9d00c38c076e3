"""How machines of an orchestrator come up: with directories and a door of their own, from an image or a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from hiveyard.core.errors import BadInput, ProviderError
from hiveyard.core.machines import Machine, MachineSpec
from hiveyard.core.ports import Agent, Forks, Provider, Snapshots
from hiveyard.kit.clock import Clock
from hiveyard.kit.copying import copy_tree
from hiveyard.kit.secret import Secret
from hiveyard.orchestrator import happenings
from hiveyard.orchestrator.doorways import Doorways
from hiveyard.orchestrator.scratch import Scratch


class Origin(NamedTuple):
    """A snapshot to go on from, and the session directory as it was then."""

    snapshot: str
    session: Path | None = None


class Booting:
    """Knows which machine has which directories, and closes and removes them with it."""

    def __init__(
        self, provider: Provider, agent: Agent, doorways: Doorways, tell: happenings.Listener, clock: Clock
    ) -> None:
        self._provider = provider
        self._agent = agent
        self._doorways = doorways
        self._tell = tell
        self._clock = clock
        self._scratch = Scratch()

    async def boot(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, origin: Origin | None = None
    ) -> Machine:
        """The machine, ready. Raises ProviderError, DoorError, CredentialsError."""
        begun = self._clock.monotonic()
        snapshot = origin.snapshot if origin else ""
        self._tell(
            happenings.BootStarted(machine=name, provider=self._provider.name, image=spec.image.name, snapshot=snapshot)
        )
        whole = await self._furnished(name, spec, placeholder, origin.session if origin else None)
        machine = await self._made(name, whole, snapshot)
        self._tell(happenings.BootReady(machine=name, seconds=self._clock.monotonic() - begun))
        return machine

    async def keep(self, name: str, spec: MachineSpec, snapshot: str) -> Origin:
        """Keep a machine as it stands, with its session directory; it goes on. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        if self._provider.capabilities.remote:
            await self._provider.snapshot(name, snapshot, passing=True)
            return Origin(snapshot)
        source = spec.session or self._scratch.of(name, "session")
        if source is None:
            raise BadInput(f"the session directory of {name} is not known here", hint="give it as MachineSpec.session")
        kept = self._scratch.room(snapshot) / "session"

        async def copy() -> None:
            try:
                await anyio.to_thread.run_sync(copy_tree, source, kept)
            except OSError as error:
                raise ProviderError(f"the session directory {source} was not copied: {error.strerror}") from error

        await self._provider.snapshot(name, snapshot, copy, passing=True)
        return Origin(snapshot, kept)

    async def fork(self, parent: str, names: Sequence[str], spec: MachineSpec) -> dict[str, Machine]:
        """Machines that go on where `parent` stands, in the one step of their provider. Raises ProviderError."""
        assert isinstance(self._provider, Forks)
        begun = self._clock.monotonic()
        about = {"provider": self._provider.name, "image": spec.image.name}
        for name in names:
            self._tell(happenings.BootStarted(machine=name, parent=parent, **about))
        machines = await self._provider.fork(parent, names, spec)
        for name in names:
            self._tell(happenings.BootReady(machine=name, seconds=self._clock.monotonic() - begun))
        return {machine.name: machine for machine in machines}

    async def forget(self, snapshot: str) -> None:
        """Remove what `keep` made; absent is a success. Raises ProviderError."""
        assert isinstance(self._provider, Snapshots)
        try:
            await self._provider.remove_snapshot(snapshot)
        finally:
            await self._scratch.remove(snapshot)

    async def end(self, name: str) -> None:
        """Remove a machine and all that was made for it; absent is a success. Raises ProviderError."""
        await self._provider.terminate(name)
        await self._doorways.close(name)
        await self._scratch.remove(name)

    async def _made(self, name: str, spec: MachineSpec, snapshot: str) -> Machine:
        if snapshot and isinstance(self._provider, Snapshots):
            return await self._provider.boot_from(snapshot, name, spec)
        await self._provider.prepare(
            spec.image, spec.shape, lambda line: self._tell(happenings.BootProgress(machine=name, line=line))
        )
        return await self._provider.boot(name, spec)

    async def _furnished(
        self, name: str, spec: MachineSpec, placeholder: Secret | None, session: Path | None
    ) -> MachineSpec:
        """With directories of its own: one for the session, where process managers keep their files, unless the spec or
        another host has one; and one for its door, which is opened. `session` is what the first of them begins as."""
        own = session is not None or not (spec.session is not None or self._provider.capabilities.remote)
        shared = ["session"] if own else []
        made = self._scratch.make(name, shared if placeholder is None else [*shared, "door"])
        if session is not None:
            await self._filled(made["session"], session)
        if placeholder is not None:
            await self._doorways.open(name, made["door"], placeholder, self._agent.protocols)
        return replace(spec, session=made.get("session", spec.session), door=made.get("door", spec.door))

    async def _filled(self, target: Path, source: Path) -> None:
        def fill() -> None:
            target.rmdir()
            copy_tree(source, target)

        try:
            await anyio.to_thread.run_sync(fill)
        except OSError as error:
            raise ProviderError(f"the session directory {target} was not copied: {error.strerror}") from error
