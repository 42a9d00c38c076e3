"""A machine whose every process is stopped by a signal: how one stands still where its host has no freezer for it.

Nobody in the machine shall see a child of their own stop, or a shell would take its job for stopped: so parents are
stopped before their children, and go on after them. What had stopped itself before stays stopped: such are written
down, before the first signal, in a file that also says that the machine stands still.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from hiveyard.kit import cmdline, files

_PATIENCE = 10.0  # seconds: a process that waits for a disk stops only when that has answered
_LOOK = 0.001
_ENTERING = (b"/bin/sh", b"env", b"setpriv", b"nsenter")
_QUIET = (b"T", b"t", b"Z", b"X")
_GONE = (FileNotFoundError, ProcessLookupError)


class SignalPause:
    """The machine of process `init`; `file` is there for as long as it stands still. `patience` is in seconds."""

    def __init__(self, init: int, file: Path, patience: float = _PATIENCE) -> None:
        self._init = init
        self._file = file
        self._patience = patience

    @property
    def stands(self) -> bool:
        return self._file.exists()

    async def begin(self) -> None:
        """Return when nothing in the machine runs. Raises TimeoutError; then the machine goes on, as it does when this
        is cancelled. What a killed daemon began is brought to its end."""
        fresh = not self.stands
        asleep = await self._quiet_ones() if fresh else self._asleep()
        self._write(asleep)
        stopped: set[int] = set()
        try:
            with anyio.fail_after(self._patience):
                # Whoever ran until now may have forked, or woken a sleeper.
                while awake := await _stop_all(self._init):
                    stopped |= awake
                    others = await self._quiet_ones() - stopped if fresh else set[int]()
                    self._write(asleep := (asleep - awake) | others)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.end()
            raise

    async def end(self) -> None:
        """Let it go on. One that does not stand still is left alone."""
        if not self.stands:
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
    """Stop all that run, each before its children are looked at; gives those."""
    awake = set()
    for pid in await _members(init):
        if not _quiet(pid):
            awake.add(pid)
            _signal(pid, signal.SIGSTOP)
            while not _quiet(pid):  # noqa: ASYNC110 (the kernel does not tell)
                await anyio.sleep(_LOOK)
    return awake


async def _members(init: int) -> list[int]:
    """All processes of a machine, parents before their children, with those of the host that are on their way in or
    wait for one that is."""
    return await anyio.to_thread.run_sync(_found, init)


def _found(init: int) -> list[int]:
    try:
        space = Path(f"/proc/{init}/ns/user").stat().st_ino
    except _GONE:
        return []
    pids = cmdline.all_pids()
    inside = {pid for pid in pids if _is_in(pid, space)}
    others = cmdline.words(pid for pid in pids if pid not in inside)
    entering = {pid for pid, words in others if _enters(words, init)}
    parents = {pid: _parent(pid) for pid in sorted(inside | entering)}
    return sorted(parents, key=lambda pid: len(list(_ancestors(pid, parents))))


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) in parents:
        yield pid


def _is_in(pid: int, space: int) -> bool:
    # A machine cannot make user namespaces, so its own is the mark of all that is in it. That of nsenter may be hidden
    # from us; its command line is not.
    try:
        return Path(f"/proc/{pid}/ns/user").stat().st_ino == space
    except OSError:
        return False


def _enters(words: list[bytes], init: int) -> bool:
    return words[0] in _ENTERING and (b"--target", b"%d" % init) in pairwise(words)


def _parent(pid: int) -> int:
    try:
        return int(_after_name(Path(f"/proc/{pid}/stat"))[1])
    except _GONE:
        return 0


def _quiet(pid: int) -> bool:
    """Whether no thread of it can run: it is stopped, or has ended."""
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
    """The fields of a stat file that follow the name, which may hold anything."""
    return stat.read_bytes().rpartition(b") ")[2].split()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
