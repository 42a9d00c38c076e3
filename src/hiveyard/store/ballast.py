"""Space that is held for nothing, and given up when the disk is full: what frees some has to be journaled first."""

from __future__ import annotations

import os
from pathlib import Path

BALLAST = 32 << 20  # bytes
_PIECES = 4  # it goes in so many, since who filled the disk may take each of them too
_PLENTY = 4  # times its size must be free before it is made: else it would be what fills the disk


class Ballast:
    """A file of `size` bytes beside the journal, where the disk has plenty of room; 0: there is none."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._whole = size == 0

    def restore(self) -> None:
        """Have it whole, if there is plenty of room. Costs next to nothing while it is."""
        if self._whole:
            return
        free = os.statvfs(self._path.parent)
        if free.f_bavail * free.f_frsize < _PLENTY * self._size:
            return
        # Where it cannot be made it is not asked for again: no write is to wait for that each time.
        self._whole = True
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
        """Give up a piece of it. False: there is none left."""
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
        self._whole = False
        return True
