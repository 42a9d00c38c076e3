"""What runs in a guest: commands, processes, and how they ended."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hiveyard.core.errors import BadInput

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PROCESS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program with its arguments (`argv`, no shell), or a script for `bash -c` (`shell`; `login` makes it `-lc`).

    Exactly one of the two is given. `cwd` is absolute or starts with `~`; None is the guest's home. `env` is added
    to the guest's own environment. Raises BadInput for a NUL, an empty argv or an impossible variable name.
    """

    argv: tuple[str, ...] | None = None
    shell: str | None = None
    login: bool = False
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.argv is None) == (self.shell is None):
            raise BadInput("a command has either argv or a shell script, and not both")
        if self.argv is not None and (not self.argv or not self.argv[0]):
            raise BadInput("a command needs a program: argv is empty")
        if self.cwd is not None and not self.cwd.startswith(("/", "~")):
            raise BadInput(f"a command's cwd is absolute or starts with ~, not {self.cwd!r}")
        for name in self.env:
            if not _ENV_NAME.match(name):
                raise BadInput(f"{name!r} is no name for an environment variable")
        for text in (*self.words(), self.cwd or "", *self.env.values()):
            if "\0" in text:
                raise BadInput("a command cannot contain a NUL character")

    def words(self) -> tuple[str, ...]:
        """The argv that runs it: the program itself, or bash with the script."""
        if self.argv is not None:
            return self.argv
        assert self.shell is not None
        return ("bash", "-lc" if self.login else "-c", self.shell)


class Result(NamedTuple):
    """How a command ended: an exit code (128 + N when signal N killed it), and the first bytes of its outputs.

    `truncated` tells that there was more output than the limit; the command itself ran to its end undisturbed.
    """

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Start again when it ends, at most `max_restarts` times; a run of `min_uptime` seconds resets the count."""

    max_restarts: int
    min_uptime: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A long-lived process.

    `name` is unique in its machine. `stdin` is a file in the guest that it reads to its end; None is /dev/null.
    `restart` None means never. `memory_mib` bounds it where the process manager can. At most `output_limit` bytes of
    stdout and of stderr are kept; it goes on when they are full. `terminal` gives it a terminal of its own in place of
    `stdin` and both outputs, where the process manager has some: what it shows is its stdout then. `inbox` makes its
    stdin a pipe that stays open, for what ProcessManager.send gives it, until ProcessManager.close_inbox. At most one
    of the three is given.
    """

    name: str
    command: Command
    stdin: str | None = None
    restart: Restart | None = None
    instances: int = 1
    memory_mib: int | None = None
    output_limit: int = 256 << 20
    terminal: bool = False
    inbox: bool = False

    def __post_init__(self) -> None:
        inputs = {"stdin": self.stdin is not None, "terminal": self.terminal, "inbox": self.inbox}
        if sum(inputs.values()) > 1:
            given = " and ".join(word for word, is_given in inputs.items() if is_given)
            raise BadInput(f"the process {self.name[:120]!r} can have one input, not {given}")
        if not _PROCESS_NAME.match(self.name):
            raise BadInput(
                f"{self.name[:120]!r} is no name for a process: 1 to 100 letters, digits, dots, dashes and underscores,"
                " starting with a letter or digit"
            )


class ProcessStatus(enum.StrEnum):
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"  # it is gone and left no exit code: its machine went down under it


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as its manager sees it now. `exit_code` follows Result.status; times are seconds since the epoch."""

    name: str
    status: ProcessStatus
    pid: int | None = None
    exit_code: int | None = None
    restarts: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    memory_mib: float | None = None
    cpu_percent: float | None = None
