"""Identify, watch and kill a QEMU process.

A pid alone identifies nothing, because pids are reused. A process is identified by its pid and its start time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import ProviderError
from hiveyard.kit import cmdline

_PROC = Path("/proc")


class Vm(NamedTuple):
    """A process. `started` is in clock ticks since the host's boot, `boot` is the id of that boot."""

    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        return self.boot == boot_id() and _started(self.pid) == self.started

    async def wait_ended(self, within: float | None = None) -> bool:
        """Wait for its end, at most `within` seconds. Return whether it has ended."""
        with _pidfd(self) as fd:
            if fd is None:
                return True
            with anyio.move_on_after(within):
                await anyio.wait_readable(fd)
                return True
        return False

    async def kill(self) -> None:
        """Kill it at once: the guest's disk is removed with it, so nothing has to be written back. A process that has
        ended is a success. Raises ProviderError if the process does not end within 20 seconds."""
        with _pidfd(self) as fd:
            if fd is None:
                return
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            with anyio.move_on_after(20):
                await anyio.wait_readable(fd)
                return
        raise ProviderError(f"the QEMU process {self.pid} was killed but does not end")


@contextlib.contextmanager
def _pidfd(vm: Vm) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(vm.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # Checked after the descriptor is open: from here on it cannot refer to another process.
        yield fd if vm.alive else None
    finally:
        os.close(fd)


def find_process(pid: int) -> Vm | None:
    """Return the process that has `pid` now, or None."""
    started = _started(pid)
    return None if started is None else Vm(pid, started, boot_id())


def labels() -> Iterator[tuple[str, Vm]]:
    """Yield the label (`-name`) of each process of this host that has one: QEMU, or a program that will exec QEMU."""
    for pid, words in cmdline.words(cmdline.all_pids()):
        if b"-nodefaults" in words and b"-name" in words[:-1]:
            vm = find_process(pid)
            if vm is not None:
                yield words[words.index(b"-name") + 1].decode("utf-8", "replace"), vm


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> int | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in parentheses may contain spaces and parentheses, so the fields are split after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
