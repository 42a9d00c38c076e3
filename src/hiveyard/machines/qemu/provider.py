"""The vm provider: prepare makes disk and template, boot forks, the rest is bookkeeping on disk."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.core.commands import Command
from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    MachineLost,
    MachineNotReady,
    NoSuchMachine,
)
from hiveyard.core.machines import (
    Capabilities,
    Image,
    Machine,
    MachineSpec,
    MachineStatus,
    Readiness,
    Report,
    Shape,
    StoredItem,
    Tier,
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest, Meanwhile, SnapshotStats
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.lock import file_lock
from hiveyard.kit.refcount import RefCounted
from hiveyard.machines.qemu import terminal
from hiveyard.machines.qemu.accelerator import CANDIDATES, Accelerator
from hiveyard.machines.qemu.command import DOOR_ADDRESS
from hiveyard.machines.qemu.disk import remove_tree
from hiveyard.machines.qemu.disk_usage import held
from hiveyard.machines.qemu.entry import Entries, GuestExec
from hiveyard.machines.qemu.forking import Fork, bring_up
from hiveyard.machines.qemu.host import Qemu, check_memory, check_space, space_named
from hiveyard.machines.qemu.launch import StateRefused
from hiveyard.machines.qemu.pause import go_on, hold_still, mended
from hiveyard.machines.qemu.record import Record, Rig, read
from hiveyard.machines.qemu.settings import QemuSettings
from hiveyard.machines.qemu.snapshot import Snapshot, Snapshots
from hiveyard.machines.qemu.template import Origin
from hiveyard.machines.qemu.template_stock import TemplateStock
from hiveyard.machines.qemu.user import builder, user_for
from hiveyard.machines.qemu.vm import Vm, labels
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_log = logging.getLogger(__name__)


@of_machines
class QemuProvider:
    """Provider of tier vm.

    `state` is this installation's own directory for machines, `cache` holds disks and templates and may be shared.
    """

    name = "qemu"
    tier = Tier.VM

    def __init__(
        self,
        state: Path,
        cache: Path,
        settings: QemuSettings | None = None,
        *,
        clock: Clock | None = None,
        accelerators: Sequence[Accelerator] = CANDIDATES,
    ) -> None:
        self.capabilities = Capabilities(door_url=f"http://{DOOR_ADDRESS}")
        self._state = state
        self._cache = cache
        self._settings = settings or QemuSettings()
        self._clock = clock or SystemClock()
        self._builder = builder(first=self._settings.uid)
        self._stock = TemplateStock(cache, self._settings, self._builder, accelerators)
        self._snapshots = Snapshots(state / ".snapshots")
        self._entries = Entries()
        self.opened = RefCounted(self._entries.aclose).used
        # Two installations on one host never touch each other's processes.
        self._installation = "hiveyard-" + hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12] + ":"

    # What works here, and images.

    async def readiness(self) -> Readiness:
        return await self._stock.readiness()

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        await self._stock.prepare(image, shape, report)

    async def release_image(self, image_id: str) -> None:
        await self._stock.release(image_id)

    async def stored_items(self) -> list[StoredItem]:
        return await anyio.to_thread.run_sync(held, self._state, self._cache)

    async def discard(self, holding: StoredItem) -> None:
        assert holding.kind == "left" and holding.place is not None
        await remove_tree(holding.place)

    # Machines.

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        return await self._made(name, spec, lambda: self._fork(name, spec))

    async def _made(self, name: str, spec: MachineSpec, make: Callable[[], Awaitable[Record]]) -> Machine:
        async with self._holding(name):
            found = read(self._rig(name).record)
            if found is not None and found.status is MachineStatus.READY and found.alive:
                return found.machine()
            await self._remove(name)
            check_memory(spec.shape)
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_space(self._state, 256)
            try:
                with space_named():
                    return (await make()).machine()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._remove(name)
                raise

    async def _fork(self, name: str, spec: MachineSpec) -> Record:
        qemu, origin = await self._stock.begin(spec)
        try:
            return await self._bring_up(name, spec, qemu, origin)
        except StateRefused as error:
            # It was whole when we looked. If its state does not load all the same, a new one will.
            _log.warning("machine %s: %s; making its template again", name, error.message)
            await self._remove(name)
            return await self._bring_up(name, spec, qemu, await self._stock.again(spec, qemu, origin))

    async def _bring_up(self, name: str, spec: MachineSpec, qemu: Qemu, origin: Origin) -> Record:
        fork = Fork(
            name=name,
            label=f"{self._installation}{name}",
            spec=spec,
            rig=self._rig(name),
            qemu=qemu,
            user=user_for(str(spec.session or name), first=self._settings.uid),
            origin=origin,
            created_at=self._clock.now(),
            timeout=self._settings.fork_timeout if origin.frozen else self._settings.boot_timeout,
        )
        record, early = await bring_up(fork)
        self._entries.add(name, early)
        return record

    # Standing still.

    async def pause(self, name: str) -> None:
        async with self._standing(name) as (record, rig):
            await hold_still(record, rig)

    async def resume(self, name: str) -> None:
        async with self._standing(name) as (record, rig):
            await go_on(record, rig)

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        async with self._standing(name) as (record, rig):
            check_space(self._state, record.shape.memory_mib // 4 + 256)
            with space_named():
                return await self._snapshots.take(
                    snapshot, record, rig, self._builder.group, meanwhile, whole=temporary
                )

    async def make_ready(self, snapshot: str) -> None:
        await self._unfolded(snapshot)

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        found, qemu = await self._unfolded(snapshot)
        base = self._rig(name).base
        return await self._made(name, spec, lambda: self._bring_up(name, spec, qemu, found.settle(base)))

    async def _unfolded(self, snapshot: str) -> tuple[Snapshot, Qemu]:
        """A snapshot that a machine can begin from, and the QEMU for it."""
        found = self._snapshots.find(snapshot)
        qemu = await self._stock.qemu_of(found)
        check_space(self._state, (self._snapshots.room(snapshot) >> 20) + 256)
        with space_named():
            await self._snapshots.unfold(snapshot, self._builder.group, writable=not qemu.seals)
        return found, qemu

    async def snapshots(self) -> set[str]:
        return await anyio.to_thread.run_sync(self._snapshots.names)

    async def remove_snapshot(self, snapshot: str) -> None:
        await self._snapshots.remove(snapshot)

    @asynccontextmanager
    async def _standing(self, name: str) -> AsyncIterator[tuple[Record, Rig]]:
        check_machine_name(name)
        async with self._holding(name):
            record = self._ready(name)
            yield await mended(record, self._rig(name)), self._rig(name)

    async def get(self, name: str) -> Machine:
        check_machine_name(name)
        return self._record(name).machine()

    async def list(self) -> list[Machine]:
        found = []
        for name in sorted(await self.names()):
            with contextlib.suppress(NoSuchMachine):
                found.append(self._record(name).machine())
        return found

    async def names(self) -> set[str]:
        found = self._state.iterdir() if self._state.is_dir() else ()
        kept = {path.name for path in found if path.is_dir() and not path.name.startswith(".")}
        return kept | {name for name, _ in await anyio.to_thread.run_sync(self._strays)}

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with self._holding(name):
            found = self._record(name)
            await self._entries.drop(name)
            await self._end(name)
            found.stopped().write(self._rig(name).record)
            shutil.rmtree(self._rig(name).run, ignore_errors=True)

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._holding(name):
            await self._remove(name)
            self._lock(name).unlink(missing_ok=True)

    async def _remove(self, name: str) -> None:
        await self._entries.drop(name)
        await self._end(name)
        await anyio.to_thread.run_sync(self._snapshots.forget_half, name)
        root = self._rig(name).root
        if root.exists():
            await anyio.to_thread.run_sync(shutil.rmtree, root)

    async def _end(self, name: str) -> None:
        found = read(self._rig(name).record)
        if found is not None and found.vm is not None:
            await found.vm.kill()
        # A daemon that was killed while it started one never wrote down which it was. A program on its way to become
        # QEMU may have a child by now, so we look until there is nothing.
        while strays := [vm for other, vm in await anyio.to_thread.run_sync(self._strays) if other == name]:
            for vm in strays:
                await vm.kill()

    # Guests.

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        words = terminal_words(secrets.token_hex(8), command, self.capabilities)
        return terminal.program(self._ready(name), self._rig(name).root, words)

    def _ready(self, name: str) -> Record:
        check_machine_name(name)
        record = self._record(name)
        if record.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {record.machine().status}", machine=name)
        if not record.alive:
            raise MachineLost(f"machine {name} is gone: its QEMU process has ended", machine=name)
        return record

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        record = await mended(self._ready(name), self._rig(name))
        yield ShellGuest(GuestExec(self._entries, record), self.capabilities)

    async def aclose(self) -> None:
        """Let go of all connections; the machines run on."""
        await self._entries.aclose()

    # On disk.

    def _rig(self, name: str) -> Rig:
        return Rig(self._state / name)

    def _record(self, name: str) -> Record:
        rig = self._rig(name)
        if (found := read(rig.record)) is not None:
            return found
        if rig.root.exists():
            return Record(name=name, image="", status=MachineStatus.ERROR, created_at=0.0)
        raise NoSuchMachine(f"there is no machine {name}", hint="hv ps", machine=name)

    def _strays(self) -> Sequence[tuple[str, Vm]]:
        """The QEMU processes of our machines, whether or not we know them otherwise."""
        ours = self._installation
        return [(label.removeprefix(ours), vm) for label, vm in labels() if label.startswith(ours)]

    def _holding(self, name: str) -> AbstractAsyncContextManager[None]:
        return file_lock(self._lock(name))

    def _lock(self, name: str) -> Path:
        return self._state / ".locks" / name
