"""Snapshots of running machines: memory, devices and disk. Each snapshot is a template to fork.

    <state>/.snapshots/<name>/memory         the guest's memory, or its sparse form (sparse_memory.py)
    <state>/.snapshots/<name>/state          the state of its devices
    <state>/.snapshots/<name>/layer-N.qcow2  files of the root disk that the machine uses too: nobody writes to them
    <state>/.snapshots/<name>/session-N.*    files of the session's disk, likewise
    <state>/.snapshots/<name>/blank.qcow2    an empty overlay to copy
    <state>/.snapshots/<name>/snapshot.json  written last

QEMU maps a template's memory copy-on-write, so a machine's own pages are those that the guest changed; the kernel lists
them (/proc/PID/pagemap). They are written over a copy of the template's memory that was made before the pause. So the
machine is paused for what it changed, not for what it has: its devices are written (`xen-save-devices-state`, which
does not touch memory), both its disks get a new overlay, and the changed pages are copied. Everything else happens
before or after. The guest writes its session's files to the disk before it is paused, so that a machine can start from
the disk alone. Forks have the same files under their own names, so each can be removed without the other.

Connections do not survive in a fork: their other ends belong to the parent. The fork's kernel destroys its sockets, so
that a client sees an error at once and tries again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import BadInput, NoSuchSnapshot, ProviderUnavailable
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.kit import files
from hiveyard.kit.lock import file_lock
from hiveyard.kit.shape import items, text
from hiveyard.kit.shape import record as fields
from hiveyard.machines.qemu import sparse_memory
from hiveyard.machines.qemu.accelerator import Choice
from hiveyard.machines.qemu.command import LAYOUT, Layer
from hiveyard.machines.qemu.host import Processor, Qemu, processor
from hiveyard.machines.qemu.record import QemuDirectory, Record, layers
from hiveyard.machines.qemu.snapshot_writer import SnapshotWriter
from hiveyard.machines.qemu.template import Origin, finish_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")


class Snapshot(NamedTuple):
    """A snapshot, which contains memory if it is `live`. Its state depends on `engine`, `version` and, under kvm,
    `processor`, which is None in snapshots of older versions. `clean`: the session's file system was frozen."""

    origin: Origin
    engine: str
    version: str
    live: bool = True
    clean: bool = False
    processor: Processor | None = None

    def qemu(self, program: str, version: str, choices: Sequence[Choice]) -> Qemu:
        """Return this host's QEMU with the one of `choices` that the snapshot was taken under. Raises
        ProviderUnavailable if it cannot load the snapshot."""
        if not self.live:
            raise ProviderUnavailable("the snapshot has no memory that this Hiveyard can load, only files")
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
                if path not in self.origin.session:
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
        session = [root / Path(text(file)).name for file in items(data.get("session"))]
        return Snapshot(
            Origin(under, text(data.get("host_key")), frozen=root, cloned=True, session=session),
            engine=text(data.get("engine")),
            version=text(data.get("version")),
            live=data.get("memory") is True and data.get("layout") == LAYOUT,
            clean=data.get("clean") is True,
            processor=_processor(fields(data, "processor")),
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
        complete: bool = False,
        memory: bool = True,
    ) -> SnapshotStats:
        """Take a snapshot of the machine of `record`, with its `complete` memory or as small as possible; without
        `memory`, of its session's files only. The caller holds the machine's lock."""
        place = self._place(name)
        async with file_lock(self._root / ".locks" / name):
            fresh = self._root / f".new-{record.name}+{name}"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            fresh.chmod(0o711)
            try:
                writer = SnapshotWriter(record, directory, fresh, place, group)
                if memory:
                    stats = await writer.with_memory(meanwhile, None if complete else self._bases)
                else:
                    stats = await writer.files_only()
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


def _processor(data: Mapping[str, object]) -> Processor | None:
    flags = data.get("flags")
    return Processor(text(data.get("name")), tuple(map(text, flags))) if isinstance(flags, list) else None


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
