"""Commands and long-lived processes in a guest, and their results."""

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
_INVALID_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_PART = 40
_PREFIXES = {"claude": "cc", "opencode": "oc", "codex": "cx", "goose": "gs"}
_MAX_INSTANCES = 100
_MIN_ROTATED = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program with arguments (`argv`, no shell) or a script for `bash -c` (`shell`; `-lc` with `login`).

    Exactly one of the two is given. `cwd` is absolute or starts with `~`; None is the guest's home. `env` is added to
    the guest's own environment. `name` identifies the command in errors (`context["command"]`). Raises BadInput for a
    NUL character, an empty argv or an invalid variable name."""

    argv: tuple[str, ...] | None = None
    shell: str | None = None
    login: bool = False
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.argv is None) == (self.shell is None):
            raise BadInput("a command needs exactly one of argv and shell")
        if self.argv is not None and (not self.argv or not self.argv[0]):
            raise BadInput("a command needs a program, and argv is empty")
        if self.cwd is not None and not self.cwd.startswith(("/", "~")):
            raise BadInput(f"a command's cwd must be absolute or start with ~, not {self.cwd!r}")
        for name in self.env:
            if not _ENV_NAME.match(name):
                raise BadInput(f"{name!r} is not a valid name of an environment variable")
        for text in (*self.words(), self.cwd or "", *self.env.values()):
            if "\0" in text:
                raise BadInput("a command cannot contain a NUL character")

    def words(self) -> tuple[str, ...]:
        """Return the argv to run: the program itself, or bash with the script."""
        if self.argv is not None:
            return self.argv
        assert self.shell is not None
        return ("bash", "-lc" if self.login else "-c", self.shell)


class Result(NamedTuple):
    """The exit code of a command (128 + N if signal N killed it) and the first bytes of its outputs.

    `truncated` means that there was more output than the limit; the command itself was not disturbed."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """A restart policy: at most `max_restarts` restarts. A run of at least `min_uptime` seconds resets the count."""

    max_restarts: int
    min_uptime: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A long-lived process.

    `name` is unique in its machine. At most one of `stdin`, `terminal` and `inbox` is given. `stdin` is a file in the
    guest that the process reads to its end; None is /dev/null. `terminal` gives the process a terminal of its own in
    place of `stdin` and both outputs, if the process manager supports it; stdout is then the terminal's output. `inbox`
    makes its stdin a pipe that stays open for ProcessManager.send until ProcessManager.close_inbox. `restart` None
    means never.

    `instances` is the number of copies that run. Each has its own inbox and outputs, and its number in the environment
    variable HIVEYARD_INSTANCE. The first is called `name`, the others `name@2`, `name@3` and so on. `memory_mib` limits
    the memory of a run and everything that it started (the sum of their resident memory). A run over the limit is
    killed, which counts as its end for `restart`. The process manager checks the limit periodically, usually every
    second.

    At most `output_limit` bytes are kept of stdout and of stderr each: the first ones, or with `rotate` the last ones
    (at least 64 KiB, and never less than half of the limit once it was reached). The process continues when they are
    full. `stdout` and `stderr` are files of the guest for the outputs: previous content is lost, the files stay when
    the process is removed, and those of later instances end with `@2` and so on. With None the manager chooses the
    place."""

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
            raise BadInput(f"the process {self.name[:120]!r} can have only one input, not {given}")

    def _check_name(self) -> None:
        if not _PROCESS_NAME.match(self.name):
            raise BadInput(
                f"{self.name[:120]!r} is not a valid process name: use 1 to 100 letters, digits, dots, dashes and"
                " underscores, and start with a letter or digit"
            )

    def _check_limits(self) -> None:
        if not 1 <= self.instances <= _MAX_INSTANCES:
            raise BadInput(f"a process can have 1 to {_MAX_INSTANCES} instances, not {self.instances}")
        if self.memory_mib is not None and self.memory_mib < 1:
            raise BadInput(f"a memory limit must be at least 1 MiB, not {self.memory_mib}")
        if self.restart is not None and (self.restart.max_restarts < 0 or self.restart.min_uptime < 0):
            raise BadInput(f"a restart policy cannot have negative numbers: {self.restart}")

    def _check_outputs(self) -> None:
        if self.rotate and self.terminal:
            raise BadInput(f"the output of a terminal cannot be rotated: {self.name} has one")
        if self.rotate and self.output_limit < _MIN_ROTATED:
            raise BadInput(
                f"the limit of a rotated output must be at least {_MIN_ROTATED} bytes, not {self.output_limit}"
            )
        for path in (self.stdout, self.stderr):
            if path is not None and (not path.startswith(("/", "~/")) or "\0" in path):
                raise BadInput(f"the file of an output must be absolute or start with ~/, not {path[:120]!r}")


def process_name(agent: str, name: str) -> str:
    """Return a valid process name of `agent` for any text: `cc-tests` for claude's "tests".

    The same text always gives the same name. If the text had to be changed, the name ends with a digest of it, so that
    different texts give different names."""
    prefix, words = _PREFIXES.get(agent) or _plain(agent) or "agent", _plain(name)
    if words and words == name:
        return f"{prefix}-{words}"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return "-".join(part for part in (prefix, words, digest) if part)


def _plain(words: str) -> str:
    letters = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return _INVALID_IN_NAME.sub("-", letters)[:_MAX_PART].strip("._-")


class ProcessStatus(enum.StrEnum):
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"  # ended without an exit code, because its machine stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """The current state of a process, as its manager sees it.

    `exit_code` follows Result.status. Times are seconds since the epoch by the guest's clock. `pid`, `exit_code`, the
    times, memory and CPU are those of its last run.

    `uptime` is the length of that run in seconds. `memory_mib` and `cpu_percent` are those of the process and
    everything in its session (setsid(2)): resident memory, and CPU time since the start of the run as a percentage of
    one CPU, as ps(1) reports it. Both are None when nothing runs and in the result of a start. `memory_kills` counts
    the runs that were killed because they exceeded `ProcessSpec.memory_mib`. `dropped` and `dropped_stderr` are the
    bytes that `rotate` has dropped from the outputs."""

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
