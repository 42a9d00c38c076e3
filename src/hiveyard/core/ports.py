"""The contracts between the engine and machines, guests, process managers and agents.

Each Protocol is a contract. One suite of contract tests runs over all implementations. An implementation converts
foreign errors into the errors named here at its own edge. For a failure that no error here describes, it raises a
ProviderError (ProcessError, AgentError) of the fitting kind.

Abilities that only some providers have are in `core/abilities.py`. This module knows no implementation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from hiveyard.core.abilities import Forks as Forks
from hiveyard.core.abilities import HasStorage as HasStorage
from hiveyard.core.abilities import Meanwhile as Meanwhile
from hiveyard.core.abilities import Openable as Openable
from hiveyard.core.abilities import Pauses as Pauses
from hiveyard.core.abilities import SessionDisks as SessionDisks
from hiveyard.core.abilities import Snapshots as Snapshots
from hiveyard.core.abilities import SnapshotStats as SnapshotStats
from hiveyard.core.abilities import Terminals as Terminals
from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec, Result
from hiveyard.core.events import AgentEvent
from hiveyard.core.files import FileStep
from hiveyard.core.machines import (
    Capabilities,
    Image,
    Machine,
    MachineSpec,
    Readiness,
    Report,
    Shape,
    Tier,
    quiet,
)
from hiveyard.core.tools import ToolServer
from hiveyard.kit.secret import Secret


class Stream(Protocol):
    """A program that runs in a guest. Only `wait` reports failures; the other methods never raise for a program that
    ended."""

    async def send(self, data: bytes) -> None:
        """Write to the program's stdin, and wait while the pipe is full. Data that the program does not read is
        dropped."""

    async def send_eof(self) -> None:
        """Close the program's stdin. Calling it again does nothing."""

    async def receive(self) -> bytes:
        """Return the next piece of stdout, of any size; b"" at the end of the output and when the machine is lost."""

    async def receive_error(self) -> bytes:
        """Return the next piece of stderr, like `receive`."""

    async def wait(self) -> int:
        """Wait until the program has ended and return its exit code, 128 + N if signal N killed it.

        Returns as soon as the program itself has ended, even if its children still hold its outputs open. Raises
        MachineLost if the machine died or cannot be reached, GuestDisconnected if the machine is alive and only the
        connection broke."""


class Guest(Protocol):
    """The inside of one ready machine, seen as the unprivileged user of its Capabilities.

    Paths are absolute or start with `~`. They may contain any character except NUL. Every method raises MachineLost if
    the machine dies or can no longer be reached. Answers from a guest are not trusted: sizes are limited and formats
    are checked."""

    async def run(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        limit: int = 16 << 20,
    ) -> Result:
        """Run a command and wait until it ends. A failing command is a Result, not an error.

        At most `limit` bytes of each output are kept. Raises CommandTimeout after `timeout` seconds, once the command
        and all processes that it started are dead; CannotExecute if the program or the working directory does not exist
        or may not be used. Cancelling the call kills the command in the same way."""

    def open(self, command: Command) -> AbstractAsyncContextManager[Stream]:
        """Run a command and exchange data with it while the block runs.

        At the end of the block the command and all processes that it started are killed, unless `wait` has returned its
        exit code. Read both outputs: output that is not read may be dropped, or may block the other output. Raises
        CannotExecute for a working directory that may not be used; if the program cannot be started, `wait` raises
        it."""

    async def read(self, path: str, *, offset: int = 0, limit: int = 64 << 20) -> bytes:
        """Return the bytes of a file from `offset` to its end.

        Raises GuestFileTooLarge if these are more than `limit`, GuestFileNotFound, GuestIsADirectory,
        GuestPermissionDenied."""

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in place. Raises GuestFileNotFound if its directory does not exist."""

    async def write_atomic(
        self,
        path: str,
        data: bytes,
        *,
        mode: int = 0o644,
        parents: bool = True,
        owner: str | None = None,
        group: str | None = None,
    ) -> None:
        """Write a file so that a reader sees either the old or the new content.

        With `parents`, missing parent directories are made. The file belongs to the guest's own user, or to `owner` and
        `group` (names or numbers). The size, digest and mode are read back before this returns. Raises
        GuestWriteUnverified if they differ (the old content stays), GuestPermissionDenied if the guest's user may not
        give the file away."""

    async def exists(self, path: str) -> bool:
        """Return whether a file of any kind exists at `path`.

        Symlinks are followed, so a dangling link does not exist. Raises GuestPermissionDenied if a directory on the way
        may not be searched."""

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        """Make a directory. An existing directory is a success. Raises GuestNotADirectory if a file is in its place."""

    async def remove(self, path: str) -> None:
        """Remove a file. An absent file is a success. Raises GuestIsADirectory for a directory."""

    async def batch(self, steps: Sequence[FileStep]) -> None:
        """Do several small file operations in order, in one round trip (in several if their contents are large).

        Each step does what the method of the same name does and raises what that method raises, with `step`, its index
        from 0, in the error's context. The steps before a failed one stay done; the steps after it are not started."""

    async def remove_tree(self, path: str) -> None:
        """Remove a directory with everything in it, or a file. An absent path is a success.

        Raises BadInput for `/`, `~` and `/session`."""

    def follow(self, path: str, *, offset: int = 0, pid: int | None = None) -> AsyncIterator[bytes]:
        """Yield the content of a file from `offset`, then the data that is appended to it, as it arrives.

        Waits for a file that does not exist yet. Ends when process `pid` of the guest has ended and all its output was
        yielded; without `pid` it continues until the caller stops. Use `contextlib.aclosing`."""


class Provider(Protocol):
    """Makes machines of one kind. Every call is safe to repeat after a crash. The machine's name is its only handle."""

    name: str
    tier: Tier

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of all machines of this provider. They do not change while the provider is used.

        Raises BadInput while they are not known yet (see Openable)."""

    async def readiness(self) -> Readiness:
        """Return whether this provider works on this host, found out by trying it. Never raises because the host lacks
        something."""

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        """Make everything that `boot` needs from an image (disk, template, imported image). Existing parts are kept.

        Several tasks or processes may call it at once: one does the work and the others wait. Raises
        ProviderUnavailable, NoSpace, BootTimeout."""

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        """Make a machine, wait until it runs commands, and return it with the status `ready`. Callers never poll.

        If a ready machine of that name exists, it is returned unchanged; the remains of a half-made one are replaced.
        If the call fails or is cancelled, nothing is left over. Raises NoSuchImage if `prepare` was not called,
        BootTimeout, BootFailed, NoMemory, NoSpace, ProviderUnavailable."""

    async def get(self, name: str) -> Machine:
        """Return the machine's current state. Raises NoSuchMachine."""

    async def list(self) -> list[Machine]:
        """Return the current state of this installation's machines, in any status, sorted by name.

        Remains of half-made machines may be missing here and appear only in `names`. A machine that is removed during
        the call is left out."""

    async def names(self) -> set[str]:
        """Return the names of everything in the backend that this installation made: machines in any status and the
        remains of half-made ones.

        After `terminate` of each name nothing is left over."""

    async def stop(self, name: str) -> None:
        """Stop the machine and keep its name and metadata (status `stopped`). A stopped machine is a success.

        Raises NoSuchMachine."""

    async def terminate(self, name: str) -> None:
        """Remove the machine and everything that belongs to it, except the session directory. An absent machine is a
        success."""

    def guest(self, name: str) -> AbstractAsyncContextManager[Guest]:
        """Connect to the inside of a ready machine while the block runs. Blocks may be nested and may run concurrently.

        Raises NoSuchMachine, MachineNotReady, MachineLost."""

    async def release_image(self, image_id: str) -> None:
        """Remove what `prepare` made from an image. An absent image is a success."""


class ProcessManager(Protocol):
    """Keeps processes running in a guest while nobody is connected.

    It holds no state of its own. Everything is in the guest, below `/session`, so that output and exit codes survive a
    lost connection, a killed daemon and the end of the machine."""

    name: str

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        """Start a process, or return the existing process of that name, running or ended: starting twice starts once.

        If several instances are requested, all are started and the first is returned. Raises ProcessNotStarted;
        BadInput for a request that this process manager does not support."""

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        """Return the process's current state. Raises NoSuchProcess."""

    async def list(self, guest: Guest) -> list[ProcessInfo]:
        """Return all processes that were started and not removed, running or ended, in any order. Each instance is
        listed."""

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        """Store a message for a process that was started with an `inbox`.

        Returns as soon as the message is stored in the guest, whether or not the process reads. Returns True if it was
        stored, and False if a message with the same `key` was stored before (by another call, or by an earlier attempt
        of this one); then nothing is done. A sender that does not know whether its message arrived therefore sends it
        again. The message may contain any bytes, at most 16 MiB; the key may be any text.

        Each message arrives complete and once, in the order of storing; messages of several senders are not mixed. A
        sender that is killed has stored its message completely or not at all. After a restart the new run begins with
        the first message that the previous run did not read to its last byte, from its first byte. A message that was
        read is not delivered again, even if the run did not finish with it. Messages that are unread when the process
        ends for good are never delivered.

        Raises NoSuchProcess; ProcessEnded if the process has ended or its inbox was closed, and no message with that
        key was stored before; BadInput for a message that is too long or a process without an inbox; ProcessError if
        the guest's disk is full."""

    async def close_inbox(self, guest: Guest, name: str) -> None:
        """Close the process's stdin after all messages that were sent, in this run and in later ones.

        Closing it again, or after the process has ended, is a success. Raises NoSuchProcess, and BadInput for a process
        without an inbox."""

    async def stop(self, guest: Guest, name: str, *, grace: float = 5.0) -> ProcessInfo:
        """Send SIGINT to the process and everything that it started, then SIGKILL after `grace` seconds. It is not
        restarted.

        A process that has ended is a success. The name of the first of several instances stops all of them; the name of
        another stops only that one. Raises NoSuchProcess."""

    async def logs(self, guest: Guest, name: str, *, stream: str = "stdout", lines: int = 100) -> bytes:
        """Return the last lines of an output (`stdout` or `stderr`), at most 1 MiB. Raises NoSuchProcess."""

    def follow(self, guest: Guest, name: str, *, stream: str = "stdout", offset: int = 0) -> AsyncIterator[bytes]:
        """Yield an output from `offset`, then live, until the process has ended and all its output was yielded.

        For a rotated output, offset 0 means the oldest byte that is kept (`ProcessInfo.dropped`); other offsets keep
        their meaning. Bytes that are dropped while they are followed are yielded as NUL bytes. Raises NoSuchProcess,
        OutputDropped."""

    async def remove(self, guest: Guest, name: str) -> None:
        """Remove an ended process, its other instances and its output. An absent process is a success.

        Raises ProcessError while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt for an agent, with everything that its adapter needs to know. All paths are paths in the guest.

    `prompt` is a file. `state` is a directory for the agent's own state; it outlives the machine. `door_url` has no
    slash at its end. `placeholder` is the key that only this session's door accepts. `model` None selects the agent's
    default. `conversation` is the agent's own id of a conversation to continue. With `repository_config`, configuration
    files in the repository that run code at the start take effect. `command` is the command line of the `command`
    agent. With `ask`, an agent in a conversation asks for permission before it changes or runs anything; a turn of one
    prompt never asks, because nobody could answer. `system` is appended to the agent's own system prompt. It is the
    same for all turns of a conversation: some programs keep the text from the first turn, others use only the text of
    the current turn. `mcp` are tool servers by name, in addition to those of the repository if these are used, and
    `env` variables for the program's process. An adapter passes the secret values in its program's environment or
    input, never in argv or in a file."""

    name: str
    prompt: str
    workdir: str
    state: str
    door_url: str
    placeholder: str
    model: str | None = None
    conversation: str | None = None
    repository_config: bool = False
    command: str | None = None
    ask: bool = False
    system: str | None = None
    mcp: Mapping[str, ToolServer] = field(default_factory=dict)
    env: Mapping[str, Secret] = field(default_factory=dict)


class Verdict(NamedTuple):
    """The outcome of a turn according to the agent's own events, before the work tree is checked.

    If `ok` is False, `code` is an error code and `reason` a message. `conversation` is the id for continuing."""

    ok: bool
    code: str = ""
    reason: str = ""
    conversation: str | None = None


class Parser(Protocol):
    """Converts the raw output of one turn into events.

    It is deterministic: the same lines give the same events. A restarted daemon can therefore replay the stored output
    and continue."""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        """Return the events of one line of stdout. A line that is not understood gives AgentOutput, never an error."""

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        """Return the outcome, after the last line. `exit_code` None means that the process is gone without an exit
        code."""


class Agent(Protocol):
    """The adapter of one agent program. It is stateless, does no I/O, and knows no provider and no process manager."""

    name: str
    program: str  # its name in the image's list of programs; "" if it needs none
    protocols: Sequence[str]  # the model APIs that it uses: "anthropic", "openai"

    def process(self, turn: Turn) -> ProcessSpec:
        """Return the process that runs the turn.

        The prompt is passed in a file or on stdin, never in argv. `Turn.ask` has no effect. Raises BadInput for a turn
        that the agent cannot run, such as one with a `system` text or a tool server that its program cannot take."""

    def parser(self) -> Parser:
        """Return a new parser for the output of one turn, from its first line. It knows of no other turn."""

    def version(self) -> Command:
        """Return a command that prints the program's version on its first line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTerminal:
    """An agent's own terminal program in a session, with or without a user at it.

    `terminal` is the program; it needs a terminal of its own. `feed` is a file in the guest to which everything that
    happens in the program is appended, one JSON object per line, whoever typed it. The file outlives the machine and
    grows over all turns and resumes of a conversation."""

    terminal: ProcessSpec
    feed: str


@runtime_checkable
class HasTerminal(Protocol):
    """An agent with a terminal program that a user can use while Hiveyard reads its feed and sends prompts to it.

    Callers test for it with isinstance. `Turn.conversation` continues a conversation; `agent_terminal` ignores
    `Turn.prompt`."""

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        """Return the program to run. It asks no question (theme, trust, keys) before it accepts its first prompt."""

    def send_prompt(self, turn: Turn) -> Command:
        """Return a command for the guest that sends the text in the file `turn.prompt` to the program as one prompt.

        The command exits with 0 once the prompt was accepted. It waits for a program that is still starting, and exits
        with another code and a reason on stderr if no program accepts the prompt. The prompt then appears in the feed
        as AgentPrompted."""

    def interrupt(self, turn: Turn) -> Command:
        """Return a command for the guest that ends the current turn and keeps the program and its conversation.

        The command succeeds if no turn is running."""

    def feed_parser(self) -> Parser:
        """Return a parser for the lines of the feed, over all turns.

        AgentStarted (with the conversation's id) means that the program runs, AgentPrompted begins a turn, AgentEnded
        ends one, and AgentAsked means that the user must answer."""
