"""The memory of a snapshot, whole or folded.

    memory    all of it: what a machine can begin with
    base      a second name of the memory that its machine began with
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
from hiveyard.kit.copying import copy_content, share_content
from hiveyard.machines.qemu.memory import Piece

_HEAD = struct.Struct("<QQ")


def begin(root: Path, base: Path, *, whole: bool) -> os.stat_result:
    """Make in `root` what takes no part of a machine that stands still: all but the changes to the memory `base`, about
    which the answer tells. Raises OSError."""
    source = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with (root / "memory").open("wb") as target:
            if not share_content(source, target.fileno()) and (whole or not _linked(base, root / "base")):
                copy_content(source, target.fileno())
        if (root / "base").exists():
            (root / "memory").unlink()
        return os.fstat(source)
    finally:
        os.close(source)


def _linked(path: Path, name: Path) -> bool:
    """A second name keeps the file as it is, whatever becomes of the first; another file system cannot have it."""
    try:
        os.link(path, name)
    except OSError:
        return False
    return True


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
    Raises OSError, ProviderError for changes that are none."""
    changes, fresh = root / "changes", root / ".memory"
    if changes.exists() and not (root / "memory").exists():
        with (root / "base").open("rb") as base, changes.open("rb") as said, fresh.open("wb") as memory:
            copy_content(base.fileno(), memory.fileno())
            size = os.fstat(base.fileno()).st_size
            for at, data in _pieces(said, size):
                memory.seek(at)
                memory.write(data)
        ready(fresh)
        fresh.rename(root / "memory")
    for path in (changes, root / "base"):
        path.unlink(missing_ok=True)


def _pieces(changes: BinaryIO, size: int) -> Iterator[Piece]:
    while head := changes.read(_HEAD.size):
        at, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (size, 1)
        data = changes.read(length) if at + length <= size else b""
        if len(data) != length:
            raise ProviderError("the memory of the snapshot is damaged: what it says of its changes does not fit")
        yield Piece(at, data)
