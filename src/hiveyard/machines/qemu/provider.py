"""Provide the contract of a Provider for QEMU virtual machines.

`prepare` makes disk and template, `boot` forks a machine from them, and every other call works on the records on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.core.commands import Command
from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    MachineLost,
    MachineNotReady,
    NoSuchMachine,
    ProviderError,
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
    WorkspaceKind,
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest, Meanwhile, SnapshotStats
from hiveyard.kit import trees
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.lock import file_lock
from hiveyard.kit.refcount import RefCounted
from hiveyard.machines.qemu import terminal
from hiveyard.machines.qemu.accelerator import CANDIDATES, Accelerator
from hiveyard.machines.qemu.bring_up import Fork, bring_up
from hiveyard.machines.qemu.command import DOOR_ADDRESS
from hiveyard.machines.qemu.connections import Connections, GuestExec
from hiveyard.machines.qemu.disk import remove_tree
from hiveyard.machines.qemu.disk_usage import stored_items
from hiveyard.machines.qemu.host import Qemu, check_memory, check_space, disk_full_as_no_space
from hiveyard.machines.qemu.launch import StateRefused
from hiveyard.machines.qemu.pause import change_files, pause, resume, resume_if_abandoned
from hiveyard.machines.qemu.record import QemuDirectory, Record, read
from hiveyard.machines.qemu.session_disk import SessionDisk, derive, make
from hiveyard.machines.qemu.settings import QemuSettings
from hiveyard.machines.qemu.snapshot import Snapshot, Snapshots
from hiveyard.machines.qemu.template import Origin
from hiveyard.machines.qemu.template_stock import TemplateStock
from hiveyard.machines.qemu.user import builder, user_for
from hiveyard.machines.qemu.vm import Vm, labels
from hiveyard.machines.shared.bring_out import bring_out
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_log = logging.getLogger(__name__)
_FINISH_TIMEOUT = 30.0


@of_machines
class QemuProvider:
    """A provider of tier vm.

    `state` is this installation's own directory for machines. `cache` has disks and templates and may be shared.
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
        self.capabilities = Capabilities(door_url=f"http://{DOOR_ADDRESS}", workspace=WorkspaceKind.DISK)
        self._state = state
        self._cache = cache
        self._settings = settings or QemuSettings()
        self._clock = clock or SystemClock()
        self._builder = builder(first=self._settings.uid)
        self._stock = TemplateStock(cache, self._settings, self._builder, accelerators)
        self._snapshots = Snapshots(state / ".snapshots")
        self._connections = Connections()
        self.opened = RefCounted(self._connections.aclose).used
        # Installations on the same host never touch each other's processes.
        self._installation = "hiveyard-" + hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12] + ":"

    # The host and images.

    async def readiness(self) -> Readiness:
        return await self._stock.readiness()

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        await self._stock.prepare(image, shape, report)

    async def release_image(self, image_id: str) -> None:
        await self._stock.release(image_id)

    async def stored_items(self) -> list[StoredItem]:
        return await anyio.to_thread.run_sync(stored_items, self._state, self._cache)

    async def discard(self, item: StoredItem) -> None:
        assert item.kind == "left" and item.place is not None
        await remove_tree(item.place)

    # Machines.

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        return await self._create(name, spec, lambda: self._fork(name, spec))

    async def _create(self, name: str, spec: MachineSpec, start: Callable[[], Awaitable[Record]]) -> Machine:
        """Return the ready machine `name` if it exists; otherwise remove leftovers and start it with `start`."""
        async with self._lock(name):
            found = read(self._directory(name).record)
            if found is not None and found.status is MachineStatus.READY and found.alive:
                return found.machine()
            await self._remove(name)
            check_memory(spec.shape)
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_space(self._state, 256)
            try:
                with disk_full_as_no_space():
                    return (await start()).machine()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._remove(name)
                raise

    async def _fork(self, name: str, spec: MachineSpec) -> Record:
        size = self._session_size(spec)
        qemu, origin = await self._stock.origin(spec, size)
        try:
            return await self._start(name, spec, qemu, origin)
        except StateRefused as error:
            # The template passed its check. If its state does not load all the same, a new template will.
            _log.warning("machine %s: %s; making its template again", name, error.message)
            await self._remove(name)
            return await self._start(name, spec, qemu, await self._stock.replacement(spec, size, qemu, origin))

    async def _start(self, name: str, spec: MachineSpec, qemu: Qemu, origin: Origin) -> Record:
        fork = Fork(
            name=name,
            label=f"{self._installation}{name}",
            spec=spec,
            directory=self._directory(name),
            qemu=qemu,
            user=user_for(str(spec.disk or spec.session or name), first=self._settings.uid),
            origin=origin,
            created_at=self._clock.now(),
            timeout=self._settings.fork_timeout if origin.frozen else self._settings.boot_timeout,
            session_size=self._stock.session_size,
        )
        record, shell = await bring_up(fork)
        self._connections.add(name, shell)
        return record

    def _session_size(self, spec: MachineSpec) -> int:
        """Return the size of the disk that the machine's session has or will have, in bytes."""
        if spec.disk is not None and SessionDisk(spec.disk).exists:
            return SessionDisk(spec.disk).size
        return self._stock.session_size

    # Disks of sessions.

    async def make_disk(self, disk: Path, tree: Path) -> None:
        with disk_full_as_no_space():
            await make(SessionDisk(disk), tree, self._stock.session_size)

    async def derive_disk(self, snapshot: str, disk: Path) -> None:
        found = self._snapshots.find(snapshot)
        with disk_full_as_no_space():
            await derive(found.origin.session, SessionDisk(disk), unclean=not found.clean)

    async def check_disk(self, disk: Path) -> None:
        SessionDisk(disk).numbers()

    async def snapshot_disk(self, name: str, snapshot: str) -> SnapshotStats:
        async with self._locked(name) as (record, directory):
            with disk_full_as_no_space():
                return await self._snapshots.take(snapshot, record, directory, self._builder.group, None, memory=False)

    # Pauses and snapshots.

    async def pause(self, name: str) -> None:
        async with self._locked(name) as (record, directory):
            await pause(record, directory)

    async def resume(self, name: str) -> None:
        async with self._locked(name) as (record, directory):
            await resume(record, directory)

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        async with self._locked(name) as (record, directory):
            check_space(self._state, record.shape.memory_mib // 4 + 256)
            with disk_full_as_no_space():
                return await self._snapshots.take(
                    snapshot, record, directory, self._builder.group, meanwhile, complete=temporary
                )

    async def make_ready(self, snapshot: str) -> None:
        await self._expanded(snapshot)

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        found, qemu = await self._expanded(snapshot)
        base = self._directory(name).base
        return await self._create(name, spec, lambda: self._start(name, spec, qemu, found.link_into(base)))

    async def _expanded(self, snapshot: str) -> tuple[Snapshot, Qemu]:
        """Return a snapshot that a machine can start from, and the QEMU for it."""
        found = self._snapshots.find(snapshot)
        qemu = await self._stock.qemu_of(found)
        check_space(self._state, (self._snapshots.expand_size(snapshot) >> 20) + 256)
        with disk_full_as_no_space():
            await self._snapshots.expand(snapshot, self._builder.group, writable=not qemu.seals)
        return found, qemu

    async def snapshots(self) -> set[str]:
        return await anyio.to_thread.run_sync(self._snapshots.names)

    async def remove_snapshot(self, snapshot: str) -> None:
        await self._snapshots.remove(snapshot)

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[tuple[Record, QemuDirectory]]:
        """Hold the lock of a ready machine for the block."""
        check_machine_name(name)
        async with self._lock(name):
            record = self._ready(name)
            yield await resume_if_abandoned(record, self._directory(name)), self._directory(name)

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
        recorded = {path.name for path in found if path.is_dir() and not path.name.startswith(".")}
        return recorded | {name for name, _ in await anyio.to_thread.run_sync(self._processes)}

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name):
            found = self._record(name)
            await self._save_files(found)
            await self._connections.drop(name)
            await self._kill(name)
            found.stopped().write(self._directory(name).record)
            shutil.rmtree(self._directory(name).run, ignore_errors=True)

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name):
            if (found := read(self._directory(name).record)) is not None:
                await self._save_files(found)
            await self._remove(name)
            self._lock_path(name).unlink(missing_ok=True)

    async def _save_files(self, record: Record) -> None:
        """Save the session's files before the machine ends, where they outlive it. A paused machine runs again for
        that."""
        if record.session or (record.alive and not self._has_own_disk(record)):
            await self._resume_briefly(record)
            await self._bring_back(record)
            await self._finish_files(record)

    def _has_own_disk(self, record: Record) -> bool:
        """Return whether the session's disk is removed with the machine."""
        return Path(record.disk).is_relative_to(self._directory(record.name).root)

    async def _resume_briefly(self, record: Record) -> None:
        directory = self._directory(record.name)
        if record.alive:
            with contextlib.suppress(ProviderError, TimeoutError), anyio.fail_after(_FINISH_TIMEOUT):
                await resume(await resume_if_abandoned(record, directory), directory)

    async def _finish_files(self, record: Record) -> None:
        """Let the guest write its session's files to a disk that outlives the machine."""
        if not record.alive or self._has_own_disk(record):
            return
        directory = self._directory(record.name)
        try:
            with anyio.fail_after(_FINISH_TIMEOUT):
                if await change_files(record, directory, "freeze"):
                    SessionDisk(Path(record.disk)).mark_clean()
        except (ProviderError, TimeoutError) as error:
            _log.warning("machine %s could not finish its session's files: %s", record.name, error)

    async def _bring_back(self, record: Record) -> None:
        """Copy the session's files to the directory that the machine was started with. A dead machine is started once
        more for that. Raises ProviderError; then the machine is kept."""
        disk = SessionDisk(self._directory(record.name).disk)
        if not record.session or not disk.exists or record.status is MachineStatus.STOPPED:
            return
        if not record.alive:
            record = await self._revive(record)
        target = Path(record.session)
        fresh, old = (target.with_name(f"{target.name}.{word}") for word in ("new", "old"))
        for path in (fresh, old):
            await anyio.to_thread.run_sync(partial(trees.remove_tree, path, quiet=True))
        guest = ShellGuest(GuestExec(self._connections, record), self.capabilities)
        await bring_out(guest, self.capabilities.session, fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        await anyio.to_thread.run_sync(partial(trees.remove_tree, old, quiet=True))

    async def _revive(self, record: Record) -> Record:
        """Start a dead machine again from its template, with the disk of its session."""
        name, directory = record.name, self._directory(record.name)
        await self._connections.drop(name)
        await self._kill(name)
        shutil.rmtree(directory.run, ignore_errors=True)
        for socket in directory.root.glob("*.sock"):
            socket.unlink()
        image = Image(id=record.image, name=record.image, rootfs=Path())
        spec = MachineSpec(image=image, shape=record.shape, session=Path(record.session), metadata=record.metadata)
        return await self._start(name, spec, *await self._stock.origin(spec, self._stock.session_size))

    async def _remove(self, name: str) -> None:
        await self._connections.drop(name)
        await self._kill(name)
        await anyio.to_thread.run_sync(self._snapshots.remove_unfinished, name)
        root = self._directory(name).root
        if root.exists():
            await anyio.to_thread.run_sync(shutil.rmtree, root)

    async def _kill(self, name: str) -> None:
        found = read(self._directory(name).record)
        if found is not None and found.vm is not None:
            await found.vm.kill()
        # A daemon that was killed during a start has not recorded the process. A program that will exec QEMU may have a
        # child by now, so this repeats until there is none.
        while unrecorded := [vm for other, vm in await anyio.to_thread.run_sync(self._processes) if other == name]:
            for vm in unrecorded:
                await vm.kill()

    # Guests.

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        words = terminal_words(secrets.token_hex(8), command, self.capabilities)
        return terminal.program(self._ready(name), self._directory(name).root, words)

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
        record = await resume_if_abandoned(self._ready(name), self._directory(name))
        yield ShellGuest(GuestExec(self._connections, record), self.capabilities)

    async def aclose(self) -> None:
        """Close all connections. The machines continue to run."""
        await self._connections.aclose()

    # Records on disk.

    def _directory(self, name: str) -> QemuDirectory:
        return QemuDirectory(self._state / name)

    def _record(self, name: str) -> Record:
        directory = self._directory(name)
        if (found := read(directory.record)) is not None:
            return found
        if directory.root.exists():
            return Record(name=name, image="", status=MachineStatus.ERROR, created_at=0.0)
        raise NoSuchMachine(f"there is no machine {name}", hint="hv ps", machine=name)

    def _processes(self) -> Sequence[tuple[str, Vm]]:
        """Return the QEMU processes of this installation's machines, whether or not they are recorded."""
        ours = self._installation
        return [(label.removeprefix(ours), vm) for label, vm in labels() if label.startswith(ours)]

    def _lock(self, name: str) -> AbstractAsyncContextManager[None]:
        return file_lock(self._lock_path(name))

    def _lock_path(self, name: str) -> Path:
        return self._state / ".locks" / name
