"""The command lines of the host's processes, by which what was started for something is found."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Protocol

_PROC = Path("/proc")
_KERNEL, _EXITING = 0x00200000, 0x00000004  # PF_KTHREAD, PF_EXITING of <linux/sched.h>
_PATIENCE = 2.0
_FIRST_PAUSE, _LAST_PAUSE = 0.001, 0.05
_MOST = 64 << 10  # bytes of one that are read: a guest may have many, of megabytes
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


class Time(Protocol):
    """What the module `time` has."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def everyone() -> list[int]:
    """The numbers of all processes."""
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]  # noqa: PTH208 (no Path for each)


def words(pids: Iterable[int], *, proc: Path = _PROC, time: Time = time) -> Iterator[tuple[int, list[bytes]]]:
    """Those of `pids` that have a command line, each with its words, without their ends.

    In the middle of execve a process has no command line, and whoever looks then would miss it: on a busy host for as
    long as others have the processor. So such are looked at again, all together, in this thread, for two seconds at
    most. A process can also give its own away for good; those of guests are waited for only as `_of_a_guest` says.
    """
    without = yield from _look(pids, proc)
    end, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
    while without and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)
        without = yield from _look(without, proc)


def _look(pids: Iterable[int], proc: Path) -> Generator[tuple[int, list[bytes]], None, list[int]]:
    """Gives those that may have a command line soon."""
    without = []
    for pid in pids:
        process = proc / str(pid)
        try:
            with (process / "cmdline").open("rb") as file:
                line = file.read(_MOST)
            soon = not line and _may_have_one_soon(process)
        except _GONE:
            continue
        if line:
            yield pid, line.removesuffix(b"\0").split(b"\0")
        elif soon:
            without.append(pid)
    return without


def _may_have_one_soon(process: Path) -> bool:
    fields = (process / "stat").read_bytes().rpartition(b") ")[2].split()
    ends = fields[0] in (b"Z", b"X") or int(fields[6]) & (_KERNEL | _EXITING)
    return not ends and not _of_a_guest(process)


def _of_a_guest(process: Path) -> bool:
    """Whether a guest started it: it is in a pid namespace below ours, and not its process 1, which the host starts."""
    for line in (process / "status").read_bytes().splitlines():
        if line.startswith(b"NSpid:"):
            return line.split()[2:] not in ([], [b"1"])
    return False
