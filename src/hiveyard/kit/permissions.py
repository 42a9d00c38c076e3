"""Rights that the owner of a file or directory took from themselves, lent to them for as long as it takes to read it.

Root needs none of this; a daemon without rights owns what its guests make, and they may make it unreadable.
"""

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
class _Loan:
    mode: int  # as its owner set it
    users: int = 0


_changing = threading.Lock()
_loans: dict[tuple[int, int], _Loan] = {}


def opened(name: str | Path, flags: int, at: int | None = None) -> int:
    """`os.open` to read without following a link, also a file or directory of ours that we may not read: its mode is
    the same afterwards. Raises OSError."""
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
    """`os.fstat` of a file, with the mode that it has when nobody is just opening it."""
    with _changing:
        return os.fstat(fd)


@contextmanager
def entered(fd: int) -> Iterator[int]:
    """For as long as the block lasts, what is in an open directory of ours can be reached; its mode as it was set.
    Several may be in there at once: the last one out puts the mode back."""
    with _changing:
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        loan = _loans.get(key) or _Loan(stat.S_IMODE(status.st_mode))
        if not loan.mode & 0o100 and status.st_uid == os.geteuid():
            os.fchmod(fd, loan.mode | 0o100)
            _loans[key] = loan
        loan.users += 1
    try:
        yield loan.mode
    finally:
        with _changing:
            loan.users -= 1
            if loan.users == 0 and _loans.pop(key, None) is not None:
                os.fchmod(fd, loan.mode)
