"""Trees that somebody else filled, walked and removed whatever their depth, without following a link.

A guest can put directories into each other by the thousand, and move them about while we look.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HELD = 64
"""Directories on the way down that are kept open; back to those below it leads `..`."""
_FULL = (errno.ENOTEMPTY, errno.EEXIST)


def walk(root: Path) -> Iterator[tuple[list[str], list[str], int]]:
    """Each directory of a tree, from the top down: the names of the directories in it, of all else, and a descriptor
    that is open until the next step. A name that is taken out of the first list is not gone into.

    What goes away or moves meanwhile, or may not be read, is left out. Raises OSError for the root alone."""
    levels = [_Level(os.open(root, _DIRECTORY))]
    try:
        yield levels[0].names()
        while levels:
            level = levels[-1]
            if not level.left:
                _ascend(levels)
                continue
            try:
                fd = os.open(level.left.pop(), _DIRECTORY, dir_fd=level.fd)
            except OSError:
                continue
            if len(levels) > _HELD:
                level.close()
            levels.append(_Level(fd))
            yield levels[-1].names()
    finally:
        for level in levels:
            level.close()


class _Level:
    """A directory on the way down; `left` is what was not gone into yet."""

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self.fd: int | None = fd
        self.left: list[str] = []
        self._is = (status.st_dev, status.st_ino)

    def names(self) -> tuple[list[str], list[str], int]:
        assert self.fd is not None
        files: list[str] = []
        with contextlib.suppress(OSError), os.scandir(self.fd) as entries:
            for entry in entries:
                (self.left if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
        return self.left, files, self.fd

    def reopen(self, below: int) -> bool:
        """Whether it is open: from a directory in it, if that still is in it."""
        if self.fd is None:
            with contextlib.suppress(OSError):
                self.fd = os.open("..", _DIRECTORY, dir_fd=below)
                status = os.fstat(self.fd)
                if (status.st_dev, status.st_ino) != self._is:
                    self.close()
        return self.fd is not None

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def _ascend(levels: list[_Level]) -> None:
    """Leave the last directory for the one above; when it was moved out of there, for the next that is open."""
    done = levels.pop()
    assert done.fd is not None
    while levels and not levels[-1].reopen(done.fd):
        levels.pop()
    done.close()


def remove_tree(path: Path, *, quiet: bool = False) -> None:
    """Remove what is at `path`, a directory with all below it, also when its owner took the right to write from
    directories. Absent is a success.

    All that can be removed is; then OSError is raised for the first that cannot, unless `quiet`."""
    removing = _Removing()
    with removing.noting():
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            removing.all(parent, path.name)
        finally:
            os.close(parent)
    if removing.failed is not None and not quiet:
        raise removing.failed


class _Removing:
    """Directories that are not empty are moved up into the first before they are emptied: so any depth is one level."""

    def __init__(self) -> None:
        self.failed: OSError | None = None
        self._prefix = f".{secrets.token_hex(8)}"
        self._moved = 0

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self.failed = self.failed or error

    def all(self, parent: int, name: str) -> None:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        top = _entered(parent, name)
        try:
            waiting = self._cleared(top, top)
            while waiting:
                with self.noting():
                    waiting += self._gone(waiting.pop(), top)
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)

    def _gone(self, name: str, top: int) -> list[str]:
        """Remove a directory in the top; the names there of what was in it and is not empty."""
        here = _entered(top, name)
        try:
            moved = self._cleared(here, top)
        finally:
            os.close(here)
        with self.noting():
            os.rmdir(name, dir_fd=top)
        return moved

    def _cleared(self, here: int, top: int) -> list[str]:
        """Remove what is in a directory, or move it to the top; the names there of what is not empty."""
        with os.scandir(here) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        full = []
        for name, is_directory in found:
            with self.noting():
                if not is_directory:
                    os.unlink(name, dir_fd=here)
                elif not _removed(name, here):
                    full.append(name if here == top else self._lifted(name, here, top))
        return full

    def _lifted(self, name: str, here: int, top: int) -> str:
        self._moved += 1
        fresh = f"{self._prefix}-{self._moved}"
        try:
            os.rename(name, fresh, src_dir_fd=here, dst_dir_fd=top)
        except PermissionError:
            os.close(_entered(here, name))  # with the right to write it can be moved
            os.rename(name, fresh, src_dir_fd=here, dst_dir_fd=top)
        return fresh


def _removed(name: str, at: int) -> bool:
    """Whether a directory is gone; else it is not empty."""
    try:
        os.rmdir(name, dir_fd=at)
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def _entered(at: int, name: str) -> int:
    """A directory, opened, with all rights for its owner."""
    place = os.open(name, _PLACE, dir_fd=at)
    try:
        status = os.fstat(place)
        if stat.S_IMODE(status.st_mode) & 0o700 != 0o700 and status.st_uid == os.geteuid():
            Path(f"/proc/self/fd/{place}").chmod(0o700)
        return os.open(".", _DIRECTORY, dir_fd=place)
    finally:
        os.close(place)
