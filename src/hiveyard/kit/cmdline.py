"""The command lines of the host's processes, by which what was started for something is found."""

from __future__ import annotations

import time
from pathlib import Path

_KERNEL, _EXITING = 0x00200000, 0x00000004  # PF_KTHREAD, PF_EXITING of <linux/sched.h>
_PATIENCE = 2.0


def words(pid: int) -> list[bytes]:
    """The words of a process's command line, each without its end; none when it is gone, ends or is the kernel's.

    In the middle of execve a process has no command line, and whoever looks then would miss it: on a busy host for as
    long as others have the processor. So it is looked at again, in this thread, for two seconds at most.
    """
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if line or time.monotonic() > end or not _may_have_one_soon(pid):
                return line.removesuffix(b"\0").split(b"\0") if line else []
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return []
        time.sleep(0.001)


def _may_have_one_soon(pid: int) -> bool:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    return fields[0] not in (b"Z", b"X") and not int(fields[6]) & (_KERNEL | _EXITING)
