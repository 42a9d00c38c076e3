"""What runs in a guest: commands, processes, and how they ended."""

from __future__ import annotations

import enum
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hiveyard.core.errors import BadInput

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PROCESS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_PART = 40
_PREFIXES = {"claude": "cc", "opencode": "oc", "codex": "cx", "goose": "gs"}
_MOST_INSTANCES = 100
_LEAST_TURNED = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program with its arguments (`argv`, no shell), or a script for `bash -c` (`shell`; `login` makes it `-lc`).

    Exactly one of the two is given. `cwd` is absolute or starts with `~`; None is the guest's home. `env` is added
    to the guest's own environment. `name` is what errors call it (`context["command"]`), where the words say little.
    Raises BadInput for a NUL, an empty argv or an impossible variable name.
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
    `restart` None means never. `terminal` gives it a terminal of its own in place of
    `stdin` and both outputs, where the process manager has some: what it shows is its stdout then. `inbox` makes its
    stdin a pipe that stays open, for what ProcessManager.send gives it, until ProcessManager.close_inbox. At most one
    of the three is given.

    `instances` is how many of it run, each with an inbox and outputs of its own and its number in the environment as
    HIVEYARD_INSTANCE; the first is called `name`, the others `name@2`, `name@3` and so on. `memory_mib` bounds what a
    run and all that it started use together (the sum of what each has in memory): past that it is killed, which counts
    as its end for `restart`. How soon that is seen depends on the manager: a second, as a rule.

    At most `output_limit` bytes of stdout and of stderr are kept, each, and it goes on when they are full: the first
    ones, or with `rotate` the last ones (64 KiB at least, and never less than half of it once it was full).
    `stdout` and `stderr` are files of the guest to keep them in; what was in those is lost, they stay when the process
    is removed, and a later instance's have `@2` and so on at their end. None is a place of the manager's own.
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
    stdout: str | None = None
    stderr: str | None = None
    rotate: bool = False

    def __post_init__(self) -> None:
        self._check_name()
        self._check_input()
        self._check_limits()
        self._check_outputs()

    def _check_input(self) -> None:
        inputs = {"stdin": self.stdin is not None, "terminal": self.terminal, "inbox": self.inbox}
        if sum(inputs.values()) > 1:
            given = " and ".join(word for word, is_given in inputs.items() if is_given)
            raise BadInput(f"the process {self.name[:120]!r} can have one input, not {given}")

    def _check_name(self) -> None:
        if not _PROCESS_NAME.match(self.name):
            raise BadInput(
                f"{self.name[:120]!r} is no name for a process: 1 to 100 letters, digits, dots, dashes and underscores,"
                " starting with a letter or digit"
            )

    def _check_limits(self) -> None:
        if not 1 <= self.instances <= _MOST_INSTANCES:
            raise BadInput(f"a process has 1 to {_MOST_INSTANCES} instances, not {self.instances}")
        if self.memory_mib is not None and self.memory_mib < 1:
            raise BadInput(f"a memory limit is 1 MiB at least, not {self.memory_mib}")
        if self.restart is not None and (self.restart.max_restarts < 0 or self.restart.min_uptime < 0):
            raise BadInput(f"a restart policy has no number below 0: {self.restart}")

    def _check_outputs(self) -> None:
        if self.rotate and self.terminal:
            raise BadInput(f"the output of a terminal cannot be rotated: {self.name} has one")
        if self.rotate and self.output_limit < _LEAST_TURNED:
            raise BadInput(f"an output that is rotated has {_LEAST_TURNED} bytes at least, not {self.output_limit}")
        for path in (self.stdout, self.stderr):
            if path is not None and (not path.startswith(("/", "~/")) or "\0" in path):
                raise BadInput(f"the file of an output is absolute or starts with ~/, not {path[:120]!r}")


def process_name(agent: str, name: str) -> str:
    """A name that a process of `agent` can have, for what people call `name`: `cc-tests` for claude's "tests". The same
    again for the same name; what had to be changed for it ends with a digest, so that no two become one."""
    prefix, words = _PREFIXES.get(agent) or _plain(agent) or "agent", _plain(name)
    if words and words == name:
        return f"{prefix}-{words}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "-".join(part for part in (prefix, words, digest) if part)


def _plain(words: str) -> str:
    letters = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return _NOT_IN_A_NAME.sub("-", letters)[:_LONGEST_PART].strip("._-")


class ProcessStatus(enum.StrEnum):
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"  # it is gone and left no exit code: its machine went down under it


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as its manager sees it now. `exit_code` follows Result.status; times are seconds since the epoch, by
    the guest's clock. `pid`, `exit_code`, the times, memory and processor are those of its last run.

    `uptime` is how long that run has lasted, or had when it ended, in seconds. `memory_mib` and `cpu_percent` are of
    the process and of all that is in its session (setsid(2)): what they have in memory, and the part of one processor
    that they have used since the run began, as ps(1) tells it; None when nothing runs, and in the answer of a start.
    `memory_kills` counts the runs that were killed because they went past `ProcessSpec.memory_mib`. `dropped` and
    `dropped_stderr` are how many bytes of the outputs `rotate` has dropped.
    """

    name: str
    status: ProcessStatus
    pid: int | None = None
    exit_code: int | None = None
    restarts: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    memory_mib: float | None = None
    cpu_percent: float | None = None
    uptime: float | None = None
    memory_kills: int = 0
    dropped: int = 0
    dropped_stderr: int = 0
