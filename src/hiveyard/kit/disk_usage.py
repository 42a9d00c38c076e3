"""Measure the space that trees take on disk: holes take none, and shared blocks are counted once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path

from hiveyard.kit.trees import walk

_FIEMAP = 0xC020660B
_HEAD, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII")
_LAST, _SHARED = 0x1, 0x2000
_AT_ONCE = 256
_SMALL = 64 << 10  # bytes: for smaller files the query costs more than it can save


class Measure:
    """A counter of bytes on disk. Each file and each shared block is counted only the first time."""

    def __init__(self) -> None:
        self._files: set[tuple[int, int]] = set()
        self._blocks: set[tuple[int, int, int]] = set()

    def tree(self, path: Path, *, without: frozenset[str] = frozenset()) -> int:
        """Return the bytes, not counted before, of a file, or of a directory with everything in it.

        Entries of the top directory that are in `without` are left out. Symlinks are not followed. Files that disappear
        during the call count nothing."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return 0
        if not stat.S_ISDIR(status.st_mode):
            return self._one(status, path.name, None)
        taken = self._one(status, "", None)
        with contextlib.suppress(FileNotFoundError):
            for directories, files, at in walk(path):
                directories[:] = [name for name in directories if name not in without]
                files = [name for name in files if name not in without]
                without = frozenset()
                taken += sum(self._named(name, at) for name in (*directories, *files))
        return taken

    def _named(self, name: str, at: int) -> int:
        try:
            return self._one(os.stat(name, dir_fd=at, follow_symlinks=False), name, at)
        except FileNotFoundError:
            return 0

    def _one(self, status: os.stat_result, name: str, at: int | None) -> int:
        key = (status.st_dev, status.st_ino)
        if key in self._files:
            return 0
        self._files.add(key)
        size = status.st_blocks * 512
        if at is None or size < _SMALL or not stat.S_ISREG(status.st_mode):
            return size
        return size - self._counted_before(status.st_dev, name, at)

    def _counted_before(self, device: int, name: str, at: int) -> int:
        """Return the bytes of a file whose blocks were counted with another file."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        except OSError:
            return 0
        try:
            counted = 0
            for physical, length in shared_extents(fd):
                block = (device, physical, length)
                counted += length if block in self._blocks else 0
                self._blocks.add(block)
            return counted
        finally:
            os.close(fd)


def shared_extents(fd: int) -> list[tuple[int, int]]:
    """Return the blocks of a file that other files may share, as (position, length) on the disk, in bytes.

    Returns an empty list if the file system cannot report it."""
    found: list[tuple[int, int]] = []
    start, last = 0, False
    while not last:
        asked = bytearray(_HEAD.size + _AT_ONCE * _EXTENT.size)
        _HEAD.pack_into(asked, 0, start, 2**64 - 1 - start, 0, 0, _AT_ONCE, 0)
        try:
            fcntl.ioctl(fd, _FIEMAP, asked)
        except OSError:
            return []
        count = _HEAD.unpack_from(asked)[3]
        last = count == 0
        for number in range(count):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(asked, _HEAD.size + number * _EXTENT.size)
            if flags & _SHARED:
                found.append((physical, length))
            start, last = logical + length, bool(flags & _LAST)
    return found
