"""The memory of a snapshot, whole or folded.

    memory    all of it: what a machine can begin with
    base      a further name of <state>/.snapshots/.bases/<file>, a copy of the memory that its machine began with
    changes   what is another by now: of each piece where it stands and how long it is (two numbers of 8 bytes, the
              lowest first), and its bytes

Where the file system shares blocks, `memory` takes no more than the changes do. Elsewhere it is folded into the other
two, until somebody begins from it.
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
    """Make in `root` what takes no part of a machine that stands still: all but the changes to the file `memory` that
    it began with, about which the answer tells. Without `bases` it is whole. Raises OSError."""
    source = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status, file = os.fstat(source), mapped(source)
        with (root / "memory").open("wb") as target:
            if share_content(source, target.fileno()):
                return file
            if bases is None or not _based(source, status, bases, root / "base"):
                copy_content(source, target.fileno())
                return file
        (root / "memory").unlink()
        return file
    finally:
        os.close(source)


def _based(source: int, status: os.stat_result, bases: Path, name: Path) -> bool:
    """Give a copy of `source` that all its snapshots share a further name. The file itself may not have one: QEMUs can
    write to it, and a template is told to be whole by its change time, which a name changes. False where the file
    system knows no further names."""
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


def forget(bases: Path) -> None:
    """Remove the copies that no snapshot has a name for, and one that was never finished."""
    if not bases.is_dir():
        return
    with files.locked(bases / _LOCK):
        for path in bases.iterdir():
            if path.name != _LOCK and path.stat().st_nlink == 1:
                path.unlink()


def finish(root: Path, pieces: Iterable[Piece]) -> int:
    """Write down the changes; returns how many bytes that was. Raises OSError."""
    folded, written = (root / "base").exists(), 0
    with (root / "changes").open("wb") if folded else (root / "memory").open("r+b") as target:
        for at, data in pieces:
            if folded:
                target.write(_HEAD.pack(at, len(data)))
            else:
                target.seek(at)
            target.write(data)
            written += len(data)
    return written


def unfold(root: Path, ready: Callable[[Path], None]) -> None:
    """Have `memory` in `root`, made when it is not there; `ready` is called with the file before it gets that name.
    Raises OSError, ProviderError for changes that are none, and leaves it as it was."""
    changes, fresh = root / "changes", root / ".memory"
    if changes.exists() and not (root / "memory").exists():
        try:
            _write_whole(root / "base", changes, fresh)
            ready(fresh)
            fresh.rename(root / "memory")
        finally:
            fresh.unlink(missing_ok=True)
    for path in (changes, root / "base"):
        path.unlink(missing_ok=True)


def room(root: Path) -> int:
    """How many bytes `unfold` takes on disk at most."""
    parts = [root / "base", root / "changes"]
    return sum(path.stat().st_blocks * 512 for path in parts if path.exists())


def _write_whole(base: Path, changes: Path, whole: Path) -> None:
    with base.open("rb") as before, changes.open("rb") as said, whole.open("wb") as memory:
        copy_content(before.fileno(), memory.fileno())
        for at, data in _pieces(said, os.fstat(before.fileno()).st_size):
            memory.seek(at)
            memory.write(data)


def _pieces(changes: BinaryIO, size: int) -> Iterator[Piece]:
    while head := changes.read(_HEAD.size):
        at, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 1)
        data = changes.read(length) if at + length <= size else b""
        if len(data) != length:
            raise ProviderError("the memory of the snapshot is damaged: what it says of its changes does not fit")
        yield Piece(at, data)
