"""Disk space in reserve, released when the disk is full.

Commands that free disk space, such as `hv rm`, must write to the journal first.
"""

from __future__ import annotations

import os
from pathlib import Path

BALLAST = 32 << 20  # bytes
_PIECES = 4  # released one at a time: the process that filled the disk may take each of them, too
_PLENTY = 4  # times its size must be free before it is made, so that it never fills the disk itself


class Ballast:
    """A file of `size` bytes beside the journal. It is made only on a disk with enough free space; never if 0."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._complete = size == 0

    def restore(self) -> None:
        """Make the file complete if the disk has enough free space. Returns at once when it is complete."""
        if self._complete:
            return
        free = os.statvfs(self._path.parent)
        if free.f_bavail * free.f_frsize < _PLENTY * self._size:
            return
        # Not tried again where it fails: else each write would wait for the attempt.
        self._complete = True
        try:
            self._make()
        except OSError:
            self._path.unlink(missing_ok=True)

    def _make(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, min(os.fstat(fd).st_size, self._size))
            os.posix_fallocate(fd, 0, self._size)
        finally:
            os.close(fd)

    def release(self) -> bool:
        """Release a piece. Return False when nothing is left."""
        if self._size == 0:
            return False
        try:
            size = self._path.stat().st_size - -(-self._size // _PIECES)
            if size > 0:
                os.truncate(self._path, size)
            else:
                self._path.unlink()
        except OSError:
            return False
        self._complete = False
        return True
