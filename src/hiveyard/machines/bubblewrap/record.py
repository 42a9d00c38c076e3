"""Read and write the directory of one machine on the host, `state/NAME/`, and identify its processes.

machine.json  how it was created; written before anything is started
pid           its process 1 and the time that started, so that a later process with the same number is not taken for it
console.log   the output of its start
home/         its /home/agent
confine       the program that applies the filter of system calls to a program that enters the machine; see seccomp.py
halted        exists while all its processes are stopped by signals; see signal_pause.py
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path
from typing import NamedTuple

import msgspec

from hiveyard.kit import files
from hiveyard.kit.trees import remove_tree

_EXITING = 0x00000004  # PF_EXITING of <linux/sched.h>


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of machine.json. `ident` is in the command line of every process that was started for the machine.
    `env` are the variables that its image sets for every command."""

    ident: str
    image: str
    created_at: float
    metadata: dict[str, str]
    cgroups: list[str]
    stopped: bool = False
    env: dict[str, str] = {}


def unknown() -> Manifest:
    """Return a manifest for a machine without one. It never ran, and no process has this `ident`."""
    return Manifest(ident=f"hiveyard-{secrets.token_hex(8)}", image="", created_at=0.0, metadata={}, cgroups=[])


class HostProcess(NamedTuple):
    """A process of the host: its number and the clock tick at which it started, which together are unique."""

    pid: int
    started: int

    def is_running(self) -> bool:
        """Whether it runs. A process that has begun to exit does not."""
        fields = _fields(self.pid)
        return bool(fields) and int(fields[19]) == self.started and not int(fields[6]) & _EXITING

    def has_ended(self) -> bool:
        """Whether it has ended. A machine's process 1 has ended when all other processes of the machine have."""
        now = start_time(self.pid)
        return now < 0 or now != self.started

    def kill(self) -> None:
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class MachineDirectory:
    """The directory of one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.home = path / "home"
        self.etc = path / "etc"
        self.log = path / "console.log"
        self.pid_file = path / "pid"
        self.halted = path / "halted"
        self.confine = path / "confine"
        self._manifest = path / "machine.json"

    def write(self, manifest: Manifest) -> None:
        # Not synced to disk: a power cut ends the machine, too, and a directory without a manifest is removed.
        files.write_atomic(self._manifest, msgspec.json.encode(manifest), mode=0o600, durable=False)

    def manifest(self) -> Manifest | None:
        """Return the manifest, None if it was never completely written. Then nothing of the machine ever ran."""
        try:
            return msgspec.json.decode(self._manifest.read_bytes(), type=Manifest)
        except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
            return None

    def recorded(self) -> HostProcess | None:
        """Return the machine's process 1 as recorded, also if it has ended."""
        try:
            pid, started = self.pid_file.read_text().split()
            return HostProcess(int(pid), int(started))
        except (FileNotFoundError, ValueError):
            return None

    def init(self) -> HostProcess | None:
        """Return the machine's process 1 if it runs."""
        process = self.recorded()
        return process if process is not None and process.is_running() else None

    def log_tail(self) -> str:
        """Return the end of the output of the machine's start."""
        try:
            return self.log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.path)


def start_time(pid: int) -> int:
    """Return the clock tick at which a process started, -1 if it does not exist or is a zombie."""
    fields = _fields(pid)
    return int(fields[19]) if fields else -1


def _fields(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the state on, which is field 3 of proc(5); none for a process that has
    ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # A guest's first thread may exit while others run. The process then looks like a zombie.
    return [] if fields[0] in (b"Z", b"X") and int(fields[17]) < 2 else fields
