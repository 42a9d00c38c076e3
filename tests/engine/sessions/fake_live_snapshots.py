"""A provider whose machines are namespaces, but which claims to have live snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import anyio

from hiveyard.core.errors import CannotKeepMemory, NoMemory, NoSuchSnapshot
from hiveyard.core.machines import Image, Machine, MachineSpec, Report, Shape, quiet
from hiveyard.core.ports import Meanwhile, Provider, SnapshotStats
from hiveyard.daemon import resources
from hiveyard.engine.engine import Engine, running
from hiveyard.machines.bubblewrap import BubblewrapProvider
from tests.engine.conftest import Yard


class FakeLiveSnapshots(BubblewrapProvider):
    """A provider whose snapshots contain no memory. They count as live because no machine starts from a removed one.
    Machines start from snapshots only while `gate` is open; `removing` is set when a snapshot is removed. `booted`
    lists the requested machines in order. With `full` no template can be created, with `secretive` no memory can be
    saved. It knows the snapshots and machines of the provider `before` it."""

    def __init__(self, yard: Yard, *, full: bool = False, before: FakeLiveSnapshots | None = None) -> None:
        here = yard.paths
        super().__init__(here.machines / "bubblewrap", here.cache / "bubblewrap", yard.settings.bubblewrap)
        self.full = full
        self.kept: set[str] = before.kept if before else set()
        self.shapes: dict[str, Shape] = before.shapes if before else {}
        self.secretive = False
        self.gate = anyio.Event()
        self.gate.set()
        self.removing = anyio.Event()
        self.booted: list[MachineSpec] = []

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        if self.full:
            raise NoMemory(f"there is no memory for a template of {shape.memory_mib} MiB")
        await super().prepare(image, shape, report)

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        self.booted.append(spec)
        self.shapes[name] = spec.shape
        return await super().boot(name, spec)

    async def get(self, name: str) -> Machine:
        return replace(await super().get(name), shape=self.shapes.get(name))

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        if self.secretive:
            raise CannotKeepMemory("nobody may read it")
        if meanwhile is not None:
            await meanwhile()
        self.kept.add(snapshot)
        return SnapshotStats(0.0, 0)

    async def make_ready(self, snapshot: str) -> None:
        if snapshot not in self.kept:
            raise NoSuchSnapshot(f"there is no snapshot {snapshot}")

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        await self.gate.wait()
        await self.make_ready(snapshot)
        return await self.boot(name, spec)

    async def snapshots(self) -> set[str]:
        return set(self.kept)

    async def remove_snapshot(self, snapshot: str) -> None:
        self.removing.set()
        self.kept.discard(snapshot)


@asynccontextmanager
async def engine_with(yard: Yard, provider: Provider) -> AsyncIterator[Engine]:
    """Run the yard's engine with this provider in place of the one with the same name."""
    async with resources(yard.paths, yard.settings, yard.environment) as parts:
        cast(MutableMapping[str, Provider], parts.providers)[provider.name] = provider
        async with running(parts) as engine:
            yield engine
