"""Write one snapshot of a running machine, with its memory or only with its session's files, as snapshot.py says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread

from hiveyard.core.errors import CannotKeepMemory, ProviderError
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.kit import files
from hiveyard.kit.group import together
from hiveyard.kit.shape import items, text
from hiveyard.kit.shape import record as fields
from hiveyard.machines.qemu import memory, sparse_memory
from hiveyard.machines.qemu.cleanup import mark_needed
from hiveyard.machines.qemu.command import LAYOUT, SESSION, Layer, storage
from hiveyard.machines.qemu.flattening import begin_flattening, end_flattening
from hiveyard.machines.qemu.host import processor
from hiveyard.machines.qemu.pause import change_files, clear_halted, is_running, mark_halted, stop_cpus, update_clock
from hiveyard.machines.qemu.record import QemuDirectory, Record
from hiveyard.machines.qemu.session_disk import SessionDisk, link_sealed
from hiveyard.machines.qemu.session_disk import overlay as empty_layer
from hiveyard.machines.qemu.state import save
from hiveyard.machines.qemu.template import finish_file, overlay
from hiveyard.machines.qemu.wire import Refused, Wire, qmp

_ROOT_NODE = re.compile(r"(?:disk\d+|own(\d+))\Z")
_SESSION_NODE = re.compile(rf"{SESSION}(\d+)\Z")


class _Switch(NamedTuple):
    """A change of the file that QEMU writes a disk to, from the node `old` to the file `path` as the node `new`."""

    old: str
    new: str
    path: str


class SnapshotWriter:
    """Takes one snapshot into the directory `fresh`, which is moved to `place` afterwards."""

    def __init__(self, record: Record, directory: QemuDirectory, fresh: Path, place: Path, group: int | None) -> None:
        self._record = record
        self._directory = directory
        self._disk = SessionDisk(Path(record.disk))
        self._fresh = fresh
        self._place = place
        self._group = group
        self._seconds = 0.0

    async def with_memory(self, meanwhile: Meanwhile | None, bases: Path | None) -> SnapshotStats:
        """Take a snapshot with memory. Raises CannotKeepMemory, NoSpace, ProviderError, and the errors of
        `meanwhile`."""
        if not self._record.origin:
            raise CannotKeepMemory(
                f"machine {self._record.name} was booted from its disk: only forks of a template can be snapshotted",
                hint="set templates = true in section [qemu] of the settings",
                machine=self._record.name,
            )
        assert self._record.vm is not None
        memory.check(self._record.vm.pid)
        async with qmp(self._directory.qmp) as wire:
            base = await anyio.to_thread.run_sync(self._begin_memory, bases)
            number, node = await _top(wire, _ROOT_NODE)
            await overlay(self._fresh / "blank.qcow2", "disk.qcow2", "qcow2", self._record.shape.disk_gib)
            own = f"disk-{number + 1}.qcow2"
            self._create(self._directory.run / own, self._fresh / "blank.qcow2")
            top, session = await self._session_switch(wire)
            switches = [_Switch(node, f"own{number + 1}", f"{self._record.run}/{own}"), session]
            async with self._paused(wire):
                changed = await self._freeze(wire, base, switches, meanwhile)
            await begin_flattening(wire, self._disk)
        await anyio.to_thread.run_sync(self._finish, number, top)
        shared = ("base", *(f"session-{lower}" for lower in self._disk.numbers() if lower < top))
        size = sum(path.stat().st_blocks * 512 for path in self._fresh.iterdir() if path.stem not in shared)
        return SnapshotStats(self._seconds, max(size, changed))

    async def files_only(self) -> SnapshotStats:
        """Take a snapshot of the session's files. Raises NoSpace, ProviderError."""
        async with qmp(self._directory.qmp) as wire:
            top, session = await self._session_switch(wire)
            running = await is_running(wire)
            self._record = mark_halted(self._record, self._directory)
            begun = time.monotonic()
            try:
                clean = running and await change_files(self._record, self._directory, "freeze")
                await _switch(wire, [session])
            finally:
                with anyio.CancelScope(shield=True):
                    if running:
                        await change_files(self._record, self._directory, "thaw")
                    self._seconds = time.monotonic() - begun
                    self._record = clear_halted(self._record, self._directory)
            await begin_flattening(wire, self._disk)
        await anyio.to_thread.run_sync(self._finish_files, top)
        await anyio.to_thread.run_sync(lambda: self._describe([], top, live=False, clean=clean))
        return SnapshotStats(self._seconds, self._disk.path(top).stat().st_blocks * 512)

    async def _session_switch(self, wire: Wire) -> tuple[int, _Switch]:
        """Create the next file of the session's disk. Return the number of the present one, and the switch."""
        await end_flattening(wire, self._disk)
        top, node = await _top(wire, _SESSION_NODE)
        blank = self._fresh / "session-blank.qcow2"
        await empty_layer(blank, self._disk.size)
        self._create(self._disk.root / f"{top + 1}.qcow2", blank)
        blank.unlink()
        return top, _Switch(node, f"{SESSION}{top + 1}", f"{self._record.files}/{top + 1}.qcow2")

    def _begin_memory(self, bases: Path | None) -> memory.File:
        try:
            return sparse_memory.begin(self._fresh, Path(self._record.origin) / "memory", bases)
        except FileNotFoundError as error:
            raise CannotKeepMemory("the memory file that the VM started with no longer exists") from error

    def _create(self, path: Path, blank: Path) -> None:
        """Create an empty file for QEMU to write to."""
        # QEMU can write to the directory of its root disk, so the path may be a symlink to anywhere by now.
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "wb") as file, blank.open("rb") as source:
            shutil.copyfileobj(source, file)
            owner = self._directory.run.stat()
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)

    @asynccontextmanager
    async def _paused(self, wire: Wire) -> AsyncIterator[None]:
        """Pause the machine for the block. A machine that was paused before stays paused."""
        was_running = await is_running(wire)
        if was_running:
            await change_files(self._record, self._directory, "sync")
        begun = time.monotonic()
        self._record = mark_halted(self._record, self._directory) if was_running else self._record
        try:
            if was_running:
                await stop_cpus(wire)
            yield
        finally:
            with anyio.CancelScope(shield=True):
                if was_running:
                    await wire.call("cont")
                self._seconds = time.monotonic() - begun
                if was_running:
                    # The mark is cleared last: if this process is killed before, the next one sets the clock, too.
                    await update_clock(self._record, self._directory)
                    self._record = clear_halted(self._record, self._directory)

    async def _freeze(
        self, wire: Wire, base: memory.File, switches: Sequence[_Switch], meanwhile: Meanwhile | None
    ) -> int:
        await save(wire, self._fresh / "state")
        await _switch(wire, switches)
        changed: list[int] = []
        async with together() as group:
            if meanwhile is not None:
                group.start_soon(meanwhile)
            changed.append(await anyio.to_thread.run_sync(self._copy_changes, base))
        return changed[0]

    def _copy_changes(self, base: memory.File) -> int:
        assert self._record.vm is not None
        return sparse_memory.finish(self._fresh, memory.changes(self._record.vm.pid, base))

    def _is_own(self, layer: Layer) -> bool:
        """Return whether a lower layer is a file of this machine, and not of the cache."""
        return Path(layer.file).is_relative_to(self._directory.root)

    def _finish(self, number: int, top: int) -> None:
        """Collect the files of a snapshot with memory, up to file `number` of the root disk and `top` of the
        session's."""
        written = [f"disk-{index}.qcow2" if index else "disk.qcow2" for index in range(number + 1)]
        own = [Path(layer.file) for layer in self._record.under if self._is_own(layer)]
        own += [self._directory.run / name for name in written]
        under = [layer for layer in self._record.under if not self._is_own(layer)]
        mark_needed({Path(layer.file).parent for layer in under}, self._place)
        for index, path in enumerate(own):
            os.link(path, self._fresh / f"layer-{index}.qcow2", follow_symlinks=False)
            under.append(Layer(str(self._place / f"layer-{index}.qcow2"), "qcow2"))
        for path in (path for path in self._fresh.iterdir() if path.name != "base"):
            finish_file(path, self._group, writable=path.name == "memory" and not self._record.sealed)
        self._finish_files(top)
        self._describe(under, top, live=True, clean=False)

    def _finish_files(self, top: int) -> None:
        for number, kind in self._disk.numbers().items():
            if number <= top:
                link_sealed(self._disk.path(number), self._fresh / f"session-{number}.{kind}", self._group)

    def _describe(self, under: Sequence[Layer], top: int, *, live: bool, clean: bool) -> None:
        numbers = self._disk.numbers().items()
        data = {
            "machine": self._record.name,
            "layout": LAYOUT,
            "memory": live,
            "under": under,
            "session": [f"session-{number}.{kind}" for number, kind in numbers if number <= top],
            "clean": clean,
            "host_key": self._record.host_key,
            "engine": self._record.engine,
            "version": self._record.version,
            "processor": processor()._asdict(),
        }
        files.write_atomic(self._fresh / "snapshot.json", json.dumps(data).encode())


async def _top(wire: Wire, name: re.Pattern[str]) -> tuple[int, str]:
    """Return the number of the file that QEMU writes a disk to, and QEMU's name for it, which matches `name`."""
    for block in items(await wire.call("query-block")):
        node = text(fields(block, "inserted").get("node-name"))
        if match := name.match(node):
            return int(match.group(1) or 0), node
    raise ProviderError("QEMU does not report which file it writes to")


async def _switch(wire: Wire, switches: Sequence[_Switch]) -> None:
    """Make QEMU write its disks to empty files from now on, all at the same instant."""
    for switch in switches:
        with contextlib.suppress(Refused):  # the node exists only if a daemon ended between these commands
            await wire.call("blockdev-del", **{"node-name": switch.new})
        await wire.call(
            "blockdev-add",
            driver="qcow2",
            file=storage(switch.path, writable=True),
            backing=None,
            discard="unmap",
            **{"node-name": switch.new},
        )
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": switch.old, "overlay": switch.new}} for switch in switches
    ]
    await wire.call("transaction", actions=actions)
