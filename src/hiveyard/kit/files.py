"""Write files atomically, open files in untrusted trees, and lock files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True, parents: bool = True) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees either the old or the new content.

    Raises OSError of the system (ENOSPC, EACCES, ...); the temporary file is then removed. Missing directories are
    made, unless `parents` is false."""
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make the creation and removal of names in a directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file, following symlinks, and return its descriptor.

    Raises OSError of the system, and immediately for anything else: a device, a directory, or a FIFO, on which opening
    and reading would block."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not _is_regular(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def open_beneath(root: Path, relative: str) -> int:
    """Open a regular file under `root` for reading, without following any symlink, and return its descriptor.

    For trees that a guest can write to. Raises FileNotFoundError, or PermissionError if the path leaves `root`, crosses
    a symlink or is not a regular file. A FIFO does not block."""
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise PermissionError(errno.EPERM, "the path leaves the directory", relative)
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            deeper = _open_at(here, part, os.O_DIRECTORY, relative)
            os.close(here)
            here = deeper
        fd = _open_at(here, parts[-1], 0, relative)
    finally:
        os.close(here)
    if not _is_regular(fd):
        os.close(fd)
        raise PermissionError(errno.EPERM, "not a regular file", relative)
    return fd


def _open_at(at: int, name: str, flags: int, shown: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise PermissionError(errno.EPERM, "the path crosses a symlink or a file", shown) from None
        raise


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs. The file is made if it is absent.

    With `wait=False` raises BlockingIOError immediately if another process holds the lock. The lock ends with its
    process. The holder may unlink `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        fd = _lock(path, wait=wait)
        stack.callback(os.close, fd)
        yield


def _lock(path: Path, *, wait: bool) -> int:
    """Return a descriptor that holds the lock of the current file at `path`, not of one that was unlinked meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
