"""Store the memory of a snapshot, complete or sparse.

    memory    the complete memory, which a machine can start from
    base      a hard link to <state>/.snapshots/.bases/<file>, a copy of the memory that its machine started with
    changes   the changed pieces: for each its offset and length (two 8-byte little-endian numbers) and its bytes

On a file system that shares blocks (reflink), `memory` takes only as much space as the changes. On any other one, the
sparse form (`base` and `changes`) is stored until a machine starts from the snapshot.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from hiveyard.core.errors import ProviderError
from hiveyard.kit import files
from hiveyard.kit.copying import copy_content, share_content
from hiveyard.machines.qemu.memory import File, Piece, mapped

BASES = ".bases"
"""The directory beside the snapshots."""
_LOCK = ".lock"
_HEAD = struct.Struct("<QQ")


def begin(root: Path, memory: Path, bases: Path | None) -> File:
    """Make in `root` everything that needs no paused machine: all but the changes to `memory`, the file that the
    machine started with, which is returned. Without `bases` the complete form is used. Raises OSError."""
    source = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status, file = os.fstat(source), mapped(source)
        with (root / "memory").open("wb") as target:
            if share_content(source, target.fileno()):
                return file
            if bases is None or not _link_base(source, status, bases, root / "base"):
                copy_content(source, target.fileno())
                return file
        (root / "memory").unlink()
        return file
    finally:
        os.close(source)


def _link_base(source: int, status: os.stat_result, bases: Path, name: Path) -> bool:
    """Make `name` a hard link to a copy of `source`, which all snapshots with this base share. Return False if the
    file system has no hard links.

    `source` itself must not be linked: QEMU processes can write to it, and a link would change its change time, by
    which a template is verified."""
    bases.mkdir(mode=0o700, exist_ok=True)
    copy = bases / f"{status.st_dev:x}-{status.st_ino:x}-{status.st_mtime_ns:x}"
    with files.locked(bases / _LOCK):
        if not copy.exists():
            fresh = bases / ".new"
            with fresh.open("wb") as target:
                copy_content(source, target.fileno())
                os.fsync(target.fileno())
            fresh.rename(copy)
        try:
            os.link(copy, name)
        except OSError:
            return False
    return True


def remove_unused_bases(bases: Path) -> None:
    """Remove the copies that no snapshot links to, and an unfinished one."""
    if not bases.is_dir():
        return
    with files.locked(bases / _LOCK):
        for path in bases.iterdir():
            if path.name != _LOCK and path.stat().st_nlink == 1:
                path.unlink()


def finish(root: Path, pieces: Iterable[Piece]) -> int:
    """Write the changes and return how many bytes they have. Raises OSError."""
    sparse, written = (root / "base").exists(), 0
    with (root / "changes").open("wb") if sparse else (root / "memory").open("r+b") as target:
        for at, data in pieces:
            if sparse:
                target.write(_HEAD.pack(at, len(data)))
            else:
                target.seek(at)
            target.write(data)
            written += len(data)
    return written


def expand(root: Path, ready: Callable[[Path], None]) -> None:
    """Turn the sparse form in `root` into the complete one; `ready` is called with the file before it is named
    `memory`. A complete form is a success. Raises OSError, and ProviderError for damaged changes; then nothing has
    changed."""
    changes, fresh = root / "changes", root / ".memory"
    if changes.exists() and not (root / "memory").exists():
        try:
            _merge(root / "base", changes, fresh)
            ready(fresh)
            fresh.rename(root / "memory")
        finally:
            fresh.unlink(missing_ok=True)
    for path in (changes, root / "base"):
        path.unlink(missing_ok=True)


def expand_size(root: Path) -> int:
    """Return how many bytes `expand` takes on disk at most."""
    parts = [root / "base", root / "changes"]
    return sum(path.stat().st_blocks * 512 for path in parts if path.exists())


def _merge(base: Path, changes: Path, target: Path) -> None:
    with base.open("rb") as before, changes.open("rb") as changed, target.open("wb") as memory:
        copy_content(before.fileno(), memory.fileno())
        for at, data in _pieces(changed, os.fstat(before.fileno()).st_size):
            memory.seek(at)
            memory.write(data)


def _pieces(changes: BinaryIO, size: int) -> Iterator[Piece]:
    while head := changes.read(_HEAD.size):
        at, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 1)
        data = changes.read(length) if at + length <= size else b""
        if len(data) != length:
            raise ProviderError("the memory of the snapshot is damaged: its list of changes is malformed")
        yield Piece(at, data)
