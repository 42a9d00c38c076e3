"""Read the command lines of host processes, to find the processes that were started for something."""

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
_MOST = 64 << 10  # bytes read of each: a guest may have many, of megabytes
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


class Time(Protocol):
    """The part of the module `time` that is used here."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float, /) -> None: ...


def all_pids() -> list[int]:
    """Return the ids of all processes."""
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]  # noqa: PTH208 (no Path for each)


def words(pids: Iterable[int], *, proc: Path = _PROC, time: Time = time) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the processes of `pids` that have a command line, each with its words.

    During execve a process has no command line, and a single look would miss it: on a busy host for as long as other
    processes have the CPU. Such processes are looked at again, all together and in this thread, for at most two
    seconds. A process can also clear its own command line for good; for processes of guests, see `_of_a_guest`."""
    without = yield from _look(pids, proc)
    end, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
    while without and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)
        without = yield from _look(without, proc)


def _look(pids: Iterable[int], proc: Path) -> Generator[tuple[int, list[bytes]], None, list[int]]:
    """Yield the processes with a command line. Return those that may have one soon."""
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
    """Return whether a guest started the process.

    Such a process is in a pid namespace below ours and is not its process 1, which the host starts."""
    for line in (process / "status").read_bytes().splitlines():
        if line.startswith(b"NSpid:"):
            return line.split()[2:] not in ([], [b"1"])
    return False
