"""Walk and remove untrusted trees of any depth without following symlinks.

A guest can nest thousands of directories, and move them during the walk."""

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
"""The number of directories on the path that are kept open. The others are reopened by `..`."""
_FULL = (errno.ENOTEMPTY, errno.EEXIST)


def walk(root: Path) -> Iterator[tuple[list[str], list[str], int]]:
    """Yield each directory of a tree, from the top down: its subdirectories, its other entries, and a descriptor.

    The descriptor is open until the next step. Names that the caller removes from the first list are not entered.
    Entries that disappear or move during the walk, or may not be read, are left out. Raises OSError for the root
    only."""
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
    """A directory on the path. `left` are the subdirectories not yet entered."""

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
        """Return whether the directory is open. If needed it is reopened from its subdirectory, unless that was
        moved."""
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
    """Leave the last directory for its parent. If it was moved out of there, continue with the next open directory."""
    done = levels.pop()
    assert done.fd is not None
    while levels and not levels[-1].reopen(done.fd):
        levels.pop()
    done.close()


def remove_tree(path: Path, *, quiet: bool = False) -> None:
    """Remove a file, or a directory with everything in it, even if its owner removed the write permission. Absent is a
    success.

    Everything that can be removed is removed; then the first OSError is raised, unless `quiet`."""
    removing = _Removing()
    with removing.noting_errors():
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            removing.all(parent, path.name)
        finally:
            os.close(parent)
    if removing.failed is not None and not quiet:
        raise removing.failed


class _Removing:
    """A removal. Directories that are not empty are moved to the top before they are emptied, so any depth is one
    level."""

    def __init__(self) -> None:
        self.failed: OSError | None = None
        self._prefix = f".{secrets.token_hex(8)}"
        self._moved = 0

    @contextlib.contextmanager
    def noting_errors(self) -> Iterator[None]:
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
            waiting = self._clear(top, top)
            while waiting:
                with self.noting_errors():
                    waiting += self._remove_directory(waiting.pop(), top)
        finally:
            os.close(top)
        os.rmdir(name, dir_fd=parent)

    def _remove_directory(self, name: str, top: int) -> list[str]:
        """Remove a directory in the top. Return the names in the top of its subdirectories that are not empty."""
        here = _entered(top, name)
        try:
            moved = self._clear(here, top)
        finally:
            os.close(here)
        with self.noting_errors():
            os.rmdir(name, dir_fd=top)
        return moved

    def _clear(self, here: int, top: int) -> list[str]:
        """Remove or lift all entries of a directory. Return the names in the top of those that are not empty."""
        with os.scandir(here) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        full = []
        for name, is_directory in found:
            with self.noting_errors():
                if not is_directory:
                    os.unlink(name, dir_fd=here)
                elif not _removed(name, here):
                    full.append(name if here == top else self._lift(name, here, top))
        return full

    def _lift(self, name: str, here: int, top: int) -> str:
        self._moved += 1
        fresh = f"{self._prefix}-{self._moved}"
        try:
            os.rename(name, fresh, src_dir_fd=here, dst_dir_fd=top)
        except PermissionError:
            os.close(_entered(here, name))  # with write permission it can be moved
            os.rename(name, fresh, src_dir_fd=here, dst_dir_fd=top)
        return fresh


def _removed(name: str, at: int) -> bool:
    """Return whether a directory was removed; otherwise it is not empty."""
    try:
        os.rmdir(name, dir_fd=at)
    except OSError as error:
        if error.errno in _FULL:
            return False
        raise
    return True


def _entered(at: int, name: str) -> int:
    """Open a directory, with all permissions for its owner."""
    place = os.open(name, _PLACE, dir_fd=at)
    try:
        status = os.fstat(place)
        if stat.S_IMODE(status.st_mode) & 0o700 != 0o700 and status.st_uid == os.geteuid():
            Path(f"/proc/self/fd/{place}").chmod(0o700)
        return os.open(".", _DIRECTORY, dir_fd=place)
    finally:
        os.close(place)
