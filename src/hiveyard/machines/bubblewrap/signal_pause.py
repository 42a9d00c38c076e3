"""Stop every process of a machine with a signal. This freezes a machine on hosts without a usable freezer.

No process may see its own child stop, or a shell would report its job as stopped. So parents are stopped before their
children and continue after them. Processes that had stopped before stay stopped: they are recorded before the first
signal, in a file that also marks the machine as frozen.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from hiveyard.kit import cmdline, files
from hiveyard.machines.bubblewrap import members

_TIMEOUT = 10.0  # seconds: a process that waits for a disk stops only when the disk has answered
_POLL = 0.001
_QUIET = (b"T", b"t", b"Z", b"X")
_GONE = (FileNotFoundError, ProcessLookupError)


class SignalPause:
    """The machine of process 1 `init`. `file` exists while it is frozen. `timeout` is in seconds."""

    def __init__(self, init: int, file: Path, timeout: float = _TIMEOUT) -> None:
        self._init = init
        self._file = file
        self._timeout = timeout

    @property
    def paused(self) -> bool:
        return self._file.exists()

    async def begin(self) -> None:
        """Stop the machine's processes, and return when none of them runs. This completes what a killed daemon began.

        Raises TimeoutError. Then, and when it is cancelled, the machine continues."""
        fresh = not self.paused
        asleep = await self._quiet_ones() if fresh else self._asleep()
        self._write(asleep)
        stopped: set[int] = set()
        try:
            with anyio.fail_after(self._timeout):
                # A process that ran until now may have forked, or continued a stopped one.
                while awake := await _stop_all(self._init):
                    stopped |= awake
                    others = await self._quiet_ones() - stopped if fresh else set[int]()
                    self._write(asleep := (asleep - awake) | others)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.end()
            raise

    async def end(self) -> None:
        """Let the machine continue. Do nothing if it is not frozen."""
        if not self.paused:
            return
        asleep = self._asleep()
        for pid in reversed(await _members(self._init)):
            if pid not in asleep:
                _signal(pid, signal.SIGCONT)
        self._file.unlink()

    async def _quiet_ones(self) -> set[int]:
        return set(filter(_quiet, await _members(self._init)))

    def _asleep(self) -> set[int]:
        return msgspec.json.decode(self._file.read_bytes(), type=set[int])

    def _write(self, asleep: set[int]) -> None:
        # Not synced to disk: a power cut ends the machine too.
        files.write_atomic(self._file, msgspec.json.encode(asleep), mode=0o600, durable=False)


async def _stop_all(init: int) -> set[int]:
    """Stop all processes that run, each before its children are examined, and return them."""
    awake = set()
    for pid in await _members(init):
        if not _quiet(pid):
            awake.add(pid)
            _signal(pid, signal.SIGSTOP)
            while not _quiet(pid):  # noqa: ASYNC110 (the kernel sends no event)
                await anyio.sleep(_POLL)
    return awake


async def _members(init: int) -> list[int]:
    """Return all processes of a machine, parents before their children, with the host's programs that are entering it
    or wait for one that has."""
    return await anyio.to_thread.run_sync(_found, init)


def _found(init: int) -> list[int]:
    pids = cmdline.all_pids()
    found = members.inside(init, pids)
    if not found:
        return []
    others = cmdline.words(pid for pid in pids if pid not in found)
    found |= {pid for pid, words in others if members.enters(words, init)}
    parents = {pid: _parent(pid) for pid in sorted(found)}
    return sorted(parents, key=lambda pid: len(list(_ancestors(pid, parents))))


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) in parents:
        yield pid


def _parent(pid: int) -> int:
    try:
        return int(_after_name(Path(f"/proc/{pid}/stat"))[1])
    except _GONE:
        return 0


def _quiet(pid: int) -> bool:
    """Whether no thread of a process can run, because it is stopped or has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except _GONE:
        return True
    return all(_stopped(task) for task in tasks)


def _stopped(task: Path) -> bool:
    try:
        return _after_name(task / "stat")[0] in _QUIET
    except _GONE:
        return True


def _after_name(stat: Path) -> list[bytes]:
    """Return the fields of a stat file after the process name, which may contain anything."""
    return stat.read_bytes().rpartition(b") ")[2].split()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
