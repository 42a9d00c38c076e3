"""Read files and directories whose owner has removed their own read permission.

The permission is added for as long as the reading takes. Root needs none of this. An unprivileged daemon owns the files
of its guests, and guests may make them unreadable."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Grant:
    mode: int  # the original mode
    users: int = 0


_changing = threading.Lock()
_grants: dict[tuple[int, int], _Grant] = {}


def opened(name: str | Path, flags: int, at: int | None = None) -> int:
    """Open for reading without following a symlink, like `os.open`, even a file or directory of ours without read
    permission.

    Its mode is the same afterwards. Raises OSError."""
    try:
        return os.open(name, flags, dir_fd=at)
    except PermissionError:
        place = os.open(name, _PLACE, dir_fd=at)
        try:
            status = os.fstat(place)
            if status.st_uid != os.geteuid() or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise
            return _opened(Path(f"/proc/self/fd/{place}"), flags & ~os.O_NOFOLLOW)
        finally:
            os.close(place)


def _opened(here: Path, flags: int) -> int:
    with _changing:
        mode = stat.S_IMODE(here.stat().st_mode)
        here.chmod(mode | 0o400)
        try:
            return os.open(here, flags)
        finally:
            here.chmod(mode)


def settled(fd: int) -> os.stat_result:
    """Return `os.fstat` of a file with its original mode, not one that `opened` sets for a moment."""
    with _changing:
        return os.fstat(fd)


@contextmanager
def entered(fd: int) -> Iterator[int]:
    """Make the content of an open directory of ours accessible while the block runs, and yield the directory's original
    mode.

    Several blocks may use it at once; the last one restores the mode."""
    with _changing:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        grant = _grants.get(key) or _Grant(stat.S_IMODE(status.st_mode))
        if not grant.mode & 0o100 and status.st_uid == os.geteuid():
            os.fchmod(fd, grant.mode | 0o100)
            _grants[key] = grant
        grant.users += 1
    try:
        yield grant.mode
    finally:
        with _changing:
            grant.users -= 1
            if grant.users == 0 and _grants.pop(key, None) is not None:
                os.fchmod(fd, grant.mode)
