"""What is kept of one machine on the host: a directory `state/NAME/`, and how to tell whether it lives.

machine.json  what it was made of; there before anything is started
pid           its process 1, with the time it started, so that another process with that number is not taken for it
console.log   what its start said
home/         its /home/agent
halted        there while all its processes are stopped; see halting.py
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path
from typing import NamedTuple

import msgspec

from hiveyard.kit import cmdline, files
from hiveyard.kit.trees import remove_tree

_EXITING = 0x00000004  # PF_EXITING of <linux/sched.h>


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """The content of machine.json. `ident` is in the command line of all that was started for the machine; `env` is
    what its image sets for every command."""

    ident: str
    image: str
    created_at: float
    metadata: dict[str, str]
    cgroups: list[str]
    stopped: bool = False
    env: dict[str, str] = {}


def unknown() -> Made:
    """What is known of a machine that was never written down: it never ran, and nothing is called as it is."""
    return Made(ident=f"hiveyard-{secrets.token_hex(8)}", image="", created_at=0.0, metadata={}, cgroups=[])


class Alive(NamedTuple):
    """A process that cannot be mistaken for another: its number and the clock tick it started at."""

    pid: int
    started: int

    def lives(self) -> bool:
        """Whether it runs: not from the moment on at which it begins to end."""
        fields = _fields(self.pid)
        return bool(fields) and int(fields[19]) == self.started and not int(fields[6]) & _EXITING

    def gone(self) -> bool:
        """Whether it has ended for good; a machine's process 1 has when all of the machine has."""
        started = _started(self.pid)
        return started < 0 or started != self.started

    def kill(self) -> None:
        if not self.gone():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Record:
    """The directory of one machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.etc = directory / "etc"
        self.log = directory / "console.log"
        self.pid_file = directory / "pid"
        self.halted = directory / "halted"
        self._made = directory / "machine.json"

    def write(self, made: Made) -> None:
        # Not synced to disk: a power cut ends the machine too, and what it leaves here is removed as half-made.
        files.write_atomic(self._made, msgspec.json.encode(made), mode=0o600, durable=False)

    def made(self) -> Made | None:
        """What the machine was made of; None when that was never written whole: then nothing of it ever ran."""
        try:
            return msgspec.json.decode(self._made.read_bytes(), type=Made)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            return None

    def recorded(self) -> Alive | None:
        """The machine's process 1 as it was written down, whether or not it lives."""
        try:
            pid, started = self.pid_file.read_text().split()
            return Alive(int(pid), int(started))
        except (FileNotFoundError, ValueError):
            return None

    def init(self) -> Alive | None:
        """The machine's process 1 if it lives."""
        alive = self.recorded()
        return alive if alive is not None and alive.lives() else None

    def complaint(self) -> str:
        """The end of what the machine's start said."""
        try:
            return self.log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.directory)


def started_for(ident: str) -> set[Alive]:
    """All that was started for a machine and is outside of it, and its process 1."""
    word = ident.encode()
    return {Alive(pid, _started(pid)) for pid, words in cmdline.words(cmdline.all_pids()) if word in words}


def _started(pid: int) -> int:
    """When a process started; -1 when there is none, or only what its parent has not looked at yet."""
    fields = _fields(pid)
    return int(fields[19]) if fields else -1


def _fields(pid: int) -> list[bytes]:
    """What the kernel says of a process that has not ended: from its state on, which is field 3 of proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # A guest may have its first thread end alone, which looks as if all of the process had.
    return [] if fields[0] in (b"Z", b"X") and int(fields[17]) < 2 else fields
