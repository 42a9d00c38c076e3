"""Snapshots of running machines: memory, devices and disk. Each snapshot is a template to fork.

    <state>/.snapshots/<name>/memory         the guest's memory, or its sparse form (sparse_memory.py)
    <state>/.snapshots/<name>/state          the state of its devices
    <state>/.snapshots/<name>/table.json     the files of the session that the guest knows and has open
    <state>/.snapshots/<name>/<number>       the content of an open file that has no name any more
    <state>/.snapshots/<name>/layer-N.qcow2  disk layers that the machine uses too: nobody writes to them
    <state>/.snapshots/<name>/blank.qcow2    an empty overlay to copy
    <state>/.snapshots/<name>/snapshot.json  written last

QEMU maps a template's memory copy-on-write, so a machine's own pages are those that the guest changed; the kernel lists
them (/proc/PID/pagemap). They are written over a copy of the template's memory that was made before the pause. So the
machine is paused for what it changed, not for what it has: its devices are written (`xen-save-devices-state`, which
does not touch memory), its disk gets a new overlay, and the changed pages are copied. Everything else happens before or
after. Forks have the same files under their own names, so each can be removed without the other.

Connections do not survive in a fork: their other ends belong to the parent. The fork's kernel destroys its sockets, so
that a client sees an error at once and tries again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import BadInput, CannotKeepMemory, NoSuchSnapshot, ProviderError, ProviderUnavailable
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.kit import files
from hiveyard.kit.copying import copy_content
from hiveyard.kit.group import together
from hiveyard.kit.lock import file_lock
from hiveyard.kit.shape import record as fields
from hiveyard.kit.shape import text
from hiveyard.machines.qemu import memory, sparse_memory
from hiveyard.machines.qemu.accelerator import Choice
from hiveyard.machines.qemu.cleanup import mark_needed
from hiveyard.machines.qemu.command import LAYOUT, Layer, storage
from hiveyard.machines.qemu.fuse_process import quiesce, unquiesce
from hiveyard.machines.qemu.host import Processor, Qemu, processor
from hiveyard.machines.qemu.pause import clear_halted, is_running, mark_halted, stop_cpus, update_clock
from hiveyard.machines.qemu.record import QemuDirectory, Record, layers
from hiveyard.machines.qemu.state import save
from hiveyard.machines.qemu.template import Origin, finish_file, overlay
from hiveyard.machines.qemu.wire import Refused, Wire, qmp

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_NODE = re.compile(r"(?:disk\d+|own(\d+))\Z")


class Snapshot(NamedTuple):
    """A snapshot. Its state depends on `engine`, `version` and, under kvm, `processor`, which is None in snapshots of
    older versions."""

    origin: Origin
    engine: str
    version: str
    processor: Processor | None = None

    def qemu(self, program: str, version: str, choices: Sequence[Choice]) -> Qemu:
        """Return this host's QEMU with the one of `choices` that the snapshot was taken under. Raises
        ProviderUnavailable if it cannot load the snapshot."""
        choice = next((choice for choice in choices if repr(choice.engine) == self.engine), None)
        if choice is None or self.version != version:
            now = choices[0].engine.accel if choices else "no accelerator"
            raise ProviderUnavailable(
                f"the snapshot was taken by QEMU {self.version}, this host has {version} with {now}"
            )
        qemu = Qemu(program, version, choice)
        if qemu.kvm and self.processor and (problem := processor().incompatibility(self.processor)):
            raise ProviderUnavailable(f"the snapshot was taken under kvm on {self.processor.name}: {problem}")
        return qemu

    def link_into(self, place: Path) -> Origin:
        """Return the origin of a machine, with the snapshot's files in the new directory `place`. Raises
        NoSuchSnapshot if it was removed meanwhile."""
        root = self.origin.frozen
        assert root is not None
        place.mkdir(parents=True)
        place.chmod(0o711)
        try:
            for path in root.iterdir():
                os.link(path, place / path.name)
        except FileNotFoundError as error:
            raise NoSuchSnapshot(f"snapshot {root.name} is being removed") from error
        under = [Layer(str(place / Path(file).name), kind) if Path(file).parent == root else Layer(file, kind)
                 for file, kind in self.origin.under]  # fmt: skip
        return self.origin._replace(frozen=place, under=under)


class Snapshots:
    """All snapshots of an installation."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bases = root / sparse_memory.BASES

    def find(self, name: str) -> Snapshot:
        """Return the snapshot `name`. Raises NoSuchSnapshot."""
        root = self._place(name)
        try:
            data = fields(json.loads((root / "snapshot.json").read_bytes()))
        except (OSError, ValueError):
            raise NoSuchSnapshot(f"there is no snapshot {name}") from None
        under = layers(data.get("under"))
        for layer in under:
            if not Path(layer.file).is_file():
                raise NoSuchSnapshot(f"snapshot {name} cannot be used any more: {layer.file}, which it needs, is gone")
        origin = Origin(under, text(data.get("host_key")), frozen=root, cloned=True)
        return Snapshot(
            origin, text(data.get("engine")), text(data.get("version")), _processor(fields(data, "processor"))
        )

    def names(self) -> set[str]:
        if not self._root.is_dir():
            return set()
        found = (path.name for path in self._root.iterdir())
        return {name.rpartition("+")[2] for name in found if name not in (".locks", sparse_memory.BASES)}

    async def remove(self, name: str) -> None:
        place = self._place(name)
        async with file_lock(self._root / ".locks" / name):
            for path in (*self._root.glob(f".new-*+{name}"), place):
                await anyio.to_thread.run_sync(_discard, path)
            (self._root / ".locks" / name).unlink(missing_ok=True)
        await anyio.to_thread.run_sync(sparse_memory.remove_unused_bases, self._bases)

    def remove_unfinished(self, machine: str) -> None:
        """Remove the unfinished snapshots of a machine."""
        for path in self._root.glob(f".new-{machine}+*"):
            shutil.rmtree(path, ignore_errors=True)

    def expand_size(self, name: str) -> int:
        """Return how many bytes on disk `expand` may take."""
        return sparse_memory.expand_size(self._place(name))

    async def expand(self, name: str, group: int | None, *, writable: bool) -> None:
        """Make the complete memory file, for a machine to start from. Raises OSError, ProviderError."""
        place = self._place(name)

        def ready(path: Path) -> None:
            finish_file(path, group, writable=writable)

        async with file_lock(self._root / ".locks" / name):
            await anyio.to_thread.run_sync(sparse_memory.expand, place, ready)
        await anyio.to_thread.run_sync(sparse_memory.remove_unused_bases, self._bases)

    async def take(
        self,
        name: str,
        record: Record,
        directory: QemuDirectory,
        group: int | None,
        meanwhile: Meanwhile | None,
        *,
        complete: bool,
    ) -> SnapshotStats:
        """Take a snapshot of the machine of `record`, with its `complete` memory or as small as possible. The caller
        holds the machine's lock."""
        place = self._place(name)
        async with file_lock(self._root / ".locks" / name):
            fresh = self._root / f".new-{record.name}+{name}"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            fresh.chmod(0o711)
            try:
                bases = None if complete else self._bases
                stats = await _SnapshotWriter(record, directory, fresh, place, group, bases).take(meanwhile)
                shutil.rmtree(place, ignore_errors=True)
                fresh.replace(place)
                files.sync_dir(self._root)
                return stats
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_discard, fresh)
                    await anyio.to_thread.run_sync(sparse_memory.remove_unused_bases, self._bases)

    def _place(self, name: str) -> Path:
        if not _NAME.match(name):
            raise BadInput(f"{name[:80]!r} is not a valid snapshot name")
        return self._root / name


class _SnapshotWriter:
    """Takes one snapshot into the directory `fresh`, which is moved to `place` afterwards."""

    def __init__(
        self, record: Record, directory: QemuDirectory, fresh: Path, place: Path, group: int | None, bases: Path | None
    ) -> None:
        self._record = record
        self._directory = directory
        self._fresh = fresh
        self._place = place
        self._group = group
        self._bases = bases

    async def take(self, meanwhile: Meanwhile | None) -> SnapshotStats:
        if not self._record.origin:
            raise CannotKeepMemory(
                f"machine {self._record.name} was booted from its disk: only forks of a template can be snapshotted",
                hint="set templates = true in section [qemu] of the settings",
                machine=self._record.name,
            )
        assert self._record.vm is not None
        memory.check(self._record.vm.pid)
        async with qmp(self._directory.qmp) as wire:
            base = await anyio.to_thread.run_sync(self._begin_memory)
            top, node = await _top(wire)
            await overlay(self._fresh / "blank.qcow2", "disk.qcow2", "qcow2", self._record.shape.disk_gib)
            await self._new_top(top + 1)
            async with self._paused(wire):
                changed = await self._freeze(wire, base, top, node, meanwhile)
        await anyio.to_thread.run_sync(self._finish, top)
        size = sum(path.stat().st_blocks * 512 for path in self._fresh.iterdir() if path.name != "base")
        return SnapshotStats(self._seconds, max(size, changed))

    def _begin_memory(self) -> memory.File:
        try:
            return sparse_memory.begin(self._fresh, Path(self._record.origin) / "memory", self._bases)
        except FileNotFoundError as error:
            raise CannotKeepMemory("the memory file that the VM started with no longer exists") from error

    async def _new_top(self, number: int) -> None:
        # QEMU can write to the directory, so the path may be a symlink to anywhere by now.
        path = self._directory.run / f"disk-{number}.qcow2"
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file, (self._fresh / "blank.qcow2").open("rb") as blank:
            shutil.copyfileobj(blank, file)
            owner = self._directory.run.stat()
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)

    @asynccontextmanager
    async def _paused(self, wire: Wire) -> AsyncIterator[None]:
        """Pause the machine for the block. A machine that was paused before stays paused."""
        begun = time.monotonic()
        was_running = await is_running(wire)
        self._record = mark_halted(self._record, self._directory) if was_running else self._record
        try:
            self._table = await quiesce(self._directory.session)
            if was_running:
                await stop_cpus(wire)
            yield
        finally:
            with anyio.CancelScope(shield=True):
                if was_running:
                    await wire.call("cont")
                    await unquiesce(self._directory.session)
                self._seconds = time.monotonic() - begun
                if was_running:
                    # The mark is cleared last: if this process is killed before, the next one sets the clock, too.
                    await update_clock(self._record, self._directory)
                    self._record = clear_halted(self._record, self._directory)

    async def _freeze(self, wire: Wire, base: memory.File, top: int, node: str, meanwhile: Meanwhile | None) -> int:
        await save(wire, self._fresh / "state")
        await _switch(wire, f"{self._record.run}/disk-{top + 1}.qcow2", node, f"own{top + 1}")
        changed: list[int] = []
        async with together() as group:
            group.start_soon(anyio.to_thread.run_sync, self._save_open)
            if meanwhile is not None:
                group.start_soon(meanwhile)
            changed.append(await anyio.to_thread.run_sync(self._copy_changes, base))
        return changed[0]

    def _copy_changes(self, base: memory.File) -> int:
        assert self._record.vm is not None
        return sparse_memory.finish(self._fresh, memory.changes(self._record.vm.pid, base))

    def _save_open(self) -> None:
        (self._fresh / "table.json").write_bytes(self._table)
        table = json.loads(self._table)
        for handle, _, _, _, fd in table["opened"]:
            if fd >= 0:
                source = os.open(f"/proc/{table['pid']}/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    with (self._fresh / str(int(handle))).open("wb") as target:
                        copy_content(source, target.fileno())
                finally:
                    os.close(source)

    def _is_own(self, layer: Layer) -> bool:
        """Return whether a lower layer is a file of this machine, and not of the cache."""
        return Path(layer.file).is_relative_to(self._directory.root)

    def _finish(self, top: int) -> None:
        written = [f"disk-{number}.qcow2" if number else "disk.qcow2" for number in range(top + 1)]
        own = [Path(layer.file) for layer in self._record.under if self._is_own(layer)]
        own += [self._directory.run / name for name in written]
        under = [layer for layer in self._record.under if not self._is_own(layer)]
        mark_needed({Path(layer.file).parent for layer in under}, self._place)
        for number, path in enumerate(own):
            os.link(path, self._fresh / f"layer-{number}.qcow2", follow_symlinks=False)
            under.append(Layer(str(self._place / f"layer-{number}.qcow2"), "qcow2"))
        for path in (path for path in self._fresh.iterdir() if path.name != "base"):
            finish_file(path, self._group, writable=path.name == "memory" and not self._record.sealed)
        data = {
            "machine": self._record.name,
            "layout": LAYOUT,
            "under": under,
            "host_key": self._record.host_key,
            "engine": self._record.engine,
            "version": self._record.version,
            "processor": processor()._asdict(),
        }
        files.write_atomic(self._fresh / "snapshot.json", json.dumps(data).encode())


def _processor(data: Mapping[str, object]) -> Processor | None:
    flags = data.get("flags")
    return Processor(text(data.get("name")), tuple(map(text, flags))) if isinstance(flags, list) else None


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


async def _top(wire: Wire) -> tuple[int, str]:
    """Return the number of the disk layer that QEMU writes to, and QEMU's name for it."""
    for block in _dicts(await wire.call("query-block")):
        node = text(fields(block, "inserted").get("node-name"))
        if match := _NODE.match(node):
            return int(match.group(1) or 0), node
    raise ProviderError("QEMU does not report which disk it writes to")


def _dicts(data: object) -> list[dict[str, object]]:
    return [dict(fields(item)) for item in data] if isinstance(data, list) else []


async def _switch(wire: Wire, path: str, node: str, name: str) -> None:
    """Make QEMU write to the empty overlay at `path` from now on."""
    with contextlib.suppress(Refused):  # the node exists only if a daemon ended between these commands
        await wire.call("blockdev-del", **{"node-name": name})
    await wire.call(
        "blockdev-add",
        driver="qcow2",
        file=storage(path, writable=True),
        backing=None,
        discard="unmap",
        **{"node-name": name},
    )
    await wire.call("blockdev-snapshot", node=node, overlay=name)
