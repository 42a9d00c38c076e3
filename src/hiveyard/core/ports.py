"""The seams: what the engine asks of machines, guests, processes and agents.

Each Protocol is a contract; one contract suite in the tests runs over every implementation. Implementations turn
foreign errors into those named here, at their own edge. Anything not named raises ProviderError (ProcessError,
AgentError) of the fitting kind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec, Result
from hiveyard.core.events import AgentEvent
from hiveyard.core.files import FileStep
from hiveyard.core.machines import (
    Capabilities,
    Holding,
    Image,
    Machine,
    MachineSpec,
    Readiness,
    Report,
    Shape,
    Tier,
    quiet,
)


class Stream(Protocol):
    """A program that runs in a guest. Only `wait` tells how it went; the other verbs just come to an end."""

    async def send(self, data: bytes) -> None:
        """Give it to the program's stdin, waiting while that is full. What it does not want is dropped."""

    async def send_eof(self) -> None:
        """End its stdin. Twice is once."""

    async def receive(self) -> bytes:
        """The next piece of stdout, of any size; b"" at its end, and when the machine is lost."""

    async def receive_error(self) -> bytes:
        """The same for stderr."""

    async def wait(self) -> int:
        """The exit code, 128 + N when signal N killed it, as soon as the program itself has ended, even when
        children of it hold its outputs open. Raises MachineLost when the machine died or cannot be reached;
        GuestDisconnected when it lives and only the connection broke."""


class Guest(Protocol):
    """The inside of one ready machine, as the unprivileged user of its Capabilities.

    Paths are absolute or start with `~`; they may hold any character but NUL. Every verb raises MachineLost when the
    machine dies or cannot be reached any more. Nothing a guest answers is trusted: sizes are bounded, shapes checked.
    """

    async def run(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        limit: int = 16 << 20,
    ) -> Result:
        """Run a command to its end. A failing command is a Result, not an error.

        Raises CommandTimeout after `timeout` seconds, when the command and all that it started are dead;
        CannotExecute when its program or its cwd does not exist or may not be used. Cancelling kills it likewise.
        """

    def open(self, command: Command) -> AbstractAsyncContextManager[Stream]:
        """Run a command and talk with it, for as long as the block lasts: it, and all that it started, are killed at
        the end of the block, unless `wait` has told its exit code.

        Both outputs have to be read: what nobody reads may be dropped, or hold the other one up. Raises CannotExecute
        for a cwd that may not be used; for a program that cannot be started `wait` raises it."""

    async def read(self, path: str, *, offset: int = 0, limit: int = 64 << 20) -> bytes:
        """The bytes of a file from `offset` to its end. Raises GuestFileTooLarge when that is more than `limit`,
        GuestFileNotFound, GuestIsADirectory, GuestPermissionDenied."""

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in place; its directory must exist (else GuestFileNotFound)."""

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
        """Write a file so that a reader sees the old content or the new. Parents are made. The file's size, digest
        and mode are read back before this returns; GuestWriteUnverified when they differ (the old content stays).

        It belongs to the guest's own user, or to `owner` and `group` (names or numbers); GuestPermissionDenied where
        that user may not give it away."""

    async def exists(self, path: str) -> bool:
        """Whether something is there, of any kind; links are followed, so one to nowhere is nothing. Raises
        GuestPermissionDenied where a directory on the way may not be looked into."""

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        """Make a directory; one that exists is a success, a file in its place is GuestNotADirectory."""

    async def remove(self, path: str) -> None:
        """Remove a file; an absent one is a success, a directory is GuestIsADirectory."""

    async def batch(self, steps: Sequence[FileStep]) -> None:
        """Do small things to files in their order, all in one round trip (several where their contents are large).

        Each does what the verb of its name does and raises what that raises, with `step`, its place from 0, in the
        context. What comes before one that fails stays done, what comes after it is not begun."""

    async def remove_tree(self, path: str) -> None:
        """Remove a directory and all below it, or a file; absent is a success. `/`, `~` and `/session` are refused
        with BadInput."""

    def follow(self, path: str, *, offset: int = 0, pid: int | None = None) -> AsyncIterator[bytes]:
        """What is in a file from `offset`, then what is added to it, as it comes.

        Waits for a file that is not there yet. Ends when process `pid` of the guest has ended and all that was
        written has been given; without `pid` it goes on until the caller stops. Use `contextlib.aclosing`.
        """


class Provider(Protocol):
    """Makes machines of one kind. Each call is safe to repeat after a crash; the machine's name is the only handle."""

    name: str
    tier: Tier

    @property
    def capabilities(self) -> Capabilities:
        """The same for as long as it is used. Raises BadInput where they are not known yet (`core.opening`)."""

    async def readiness(self) -> Readiness:
        """Whether this provider works here, found out by trying. Never raises for a host that lacks something."""

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        """Make from an image all that `boot` needs (disk, template, imported image); what is there is kept.

        Safe to call at once from several tasks or processes: one does the work, the others wait.
        Raises ProviderUnavailable, NoSpace, BootTimeout."""

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        """Make the machine and return it `ready`: a command can be run. Callers never poll.

        A ready machine of that name is returned as it is; half-made remains of one are replaced. When it fails or
        is cancelled nothing is left. Raises NoSuchImage when `prepare` was not done, BootTimeout, BootFailed,
        NoMemory, NoSpace, ProviderUnavailable."""

    async def get(self, name: str) -> Machine:
        """The machine as it is now. Raises NoSuchMachine."""

    async def list(self) -> list[Machine]:
        """The machines of this installation as they are now, in any status, in the order of their names; what is left
        of half-made ones may be in `names` alone. One that goes away meanwhile is left out."""

    async def names(self) -> set[str]:
        """Names of all that exists in the backend and was made by this installation: machines in any status and
        what is left of half-made ones. `terminate` of each leaves nothing."""

    async def stop(self, name: str) -> None:
        """End the machine and keep its name and metadata (`stopped`). One that is stopped already is a success.
        Raises NoSuchMachine."""

    async def terminate(self, name: str) -> None:
        """Remove the machine and all that belongs to it, except the session directory. Absent is a success."""

    def guest(self, name: str) -> AbstractAsyncContextManager[Guest]:
        """The inside of a ready machine, for as long as the block lasts; blocks may nest and run side by side.
        Raises NoSuchMachine, MachineNotReady, MachineLost."""

    async def release_image(self, image_id: str) -> None:
        """Remove what `prepare` made from an image. Absent is a success."""


@runtime_checkable
class Terminals(Protocol):
    """A provider whose machines a person can sit down at."""

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        """A program of this host, to be run by this user on a terminal: it gives that to `command` in the ready
        machine, until the command ends.

        Keys (Ctrl-C, Ctrl-Z) and the window's size reach the command; the program ends with its exit code, and with
        another than 0 when the machine died. The command has a terminal of the guest, never the host's own. When the
        host's terminal goes away the command is hung up on; when the program itself is killed, it may live on.
        Raises NoSuchMachine, MachineNotReady, MachineLost, CannotExecute."""


Meanwhile = Callable[[], Coroutine[object, object, None]]
"""What else is to be done while a machine stands still."""


class Frozen(NamedTuple):
    """A snapshot that was taken: how long the machine stood still for it, in seconds, and the bytes it takes on disk
    beyond what it shares."""

    seconds: float
    size: int


@runtime_checkable
class Snapshots(Protocol):
    """A provider that can keep a running machine as it stands, with memory, processes, devices and disk, and make
    others that go on from there. It Pauses too.

    Snapshots have names of their own, are not changed by anybody and outlive the machine. Their session directory is
    not part of them: the caller copies that `meanwhile`."""

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, passing: bool = False
    ) -> Frozen:
        """Keep the machine `name` as it stands; one that is there of that name is replaced. A machine that is frozen
        stays so, any other stands still for as short as may be; `meanwhile` is called once while it does. `passing`:
        machines begin there at once, and then it goes, so it need not be small. When `meanwhile` or anything fails or
        is cancelled the machine is as before and nothing is left of the snapshot. Raises what `meanwhile` does,
        NoSuchMachine, MachineNotReady, MachineLost, NoSpace; CannotKeepMemory where this one's memory cannot be had."""

    async def make_ready(self, snapshot: str) -> None:
        """See to it that `boot_from` finds all it needs of the snapshot, for a caller who gives something up for that
        first. Raises NoSuchSnapshot, ProviderUnavailable when this host cannot go on with it, NoSpace, ProviderError
        for one that is damaged."""

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        """A ready machine `name` that goes on where the snapshot stands: same memory, same processes, their
        connections to a door broken off; its own name, keys, session directory, door and disk. `spec.image` and
        `spec.shape` are those of the snapshot's machine. For the rest as `boot`. Raises NoSuchSnapshot too."""

    async def snapshots(self) -> set[str]:
        """Names of all that exist, and what is left of half-made ones."""

    async def remove_snapshot(self, snapshot: str) -> None:
        """Absent is a success. Machines that go on from it live on."""


@runtime_checkable
class Forks(Protocol):
    """A provider of remote machines that makes others of a running one in one step. Where machines share directories
    with this host, whoever forks has to copy some meanwhile, as Snapshots lets them."""

    async def fork(self, name: str, children: Sequence[str], spec: MachineSpec) -> Sequence[Machine]:
        """Ready machines, in the order of `children`, that go on where the machine `name` stands, which stands still
        for a moment: same memory, same processes, names of their own. `spec` is the machine's own; they live as long
        as it says from now on. When this fails or is cancelled none of them is left. Raises BadInput for a name that is
        taken or given twice, NoSuchMachine, MachineNotReady, and for the rest as `boot`."""


@runtime_checkable
class Holds(Protocol):
    """A provider that can tell what it takes space for."""

    async def holdings(self) -> list[Holding]:
        """All of it, as it is now; made by this installation or in a cache that several share."""

    async def discard(self, holding: Holding) -> None:
        """Remove what is `left`; absent is a success."""


@runtime_checkable
class Pauses(Protocol):
    """A provider that can freeze a machine where it stands, and let it go on. A frozen machine is still `ready`; what
    is asked of its guest waits until it goes on, or until its `timeout` is over. It stays frozen when its daemon dies,
    and can be stopped and terminated as any other."""

    async def pause(self, name: str) -> None:
        """Freeze it; one that is frozen is a success. Raises NoSuchMachine, MachineNotReady; CannotFreeze, when it
        goes on."""

    async def resume(self, name: str) -> None:
        """Let it go on; one that runs is a success. Raises NoSuchMachine, MachineNotReady."""


class ProcessManager(Protocol):
    """Keeps processes alive in a guest when nobody is connected. It holds no state of its own: all is in the guest,
    below `/session`, so that output and exit codes outlive a lost connection, a killed daemon and the machine."""

    name: str

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        """Start a process, or return the one of that name that was started before (running or ended): starting
        twice starts once. Of several instances all are started and the first is returned. Raises ProcessNotStarted;
        BadInput for what this process manager cannot do at all."""

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        """Raises NoSuchProcess."""

    async def list(self, guest: Guest) -> list[ProcessInfo]:
        """All that were started and not removed, running or ended, each of several instances by itself, in no order."""

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        """Give a message to a process that was started with an `inbox`; returns when it is stored in the guest, which
        is never later because the process does not read. True: it was stored. False: one of the same `key` was stored
        before (by an earlier call, or an earlier try of this one), and nothing was done; so a sender that does not know
        how far it came sends again. Any bytes, 16 MiB at most, any key.

        Messages arrive whole, once, and in the order in which they were stored; those of several senders do not mix. A
        sender that is killed at any point has stored its message or none of it. When the process is restarted, the new
        run begins with the first message that the former did not read to its last byte, from its first one: what a run
        had read is not given again, done with or not. Messages that are not read when the process ends are never given.

        Raises NoSuchProcess; ProcessEnded when it has ended or its inbox was closed, and no such key was stored before;
        BadInput for a message that is too long or a process without an inbox; ProcessError when the guest has no
        room."""

    async def close_inbox(self, guest: Guest, name: str) -> None:
        """End its stdin after all that was sent, in this run and any later one. Twice is once, and a process that has
        ended is a success. Raises NoSuchProcess, BadInput for a process without an inbox."""

    async def stop(self, guest: Guest, name: str, *, grace: float = 5.0) -> ProcessInfo:
        """SIGINT to the process and all it started; SIGKILL after `grace` seconds; no restart. Ended already is a
        success. By the name of the first of several instances all are stopped, by another's that one. Raises
        NoSuchProcess."""

    async def logs(self, guest: Guest, name: str, *, stream: str = "stdout", lines: int = 100) -> bytes:
        """The last lines of an output (`stdout` or `stderr`), at most 1 MiB. Raises NoSuchProcess."""

    def follow(self, guest: Guest, name: str, *, stream: str = "stdout", offset: int = 0) -> AsyncIterator[bytes]:
        """An output from `offset`, then live; ends when the process has ended and all was given. Of an output that is
        rotated, 0 means the oldest byte that is kept (`ProcessInfo.dropped`), every other offset what it always means;
        what is dropped while it is being followed comes as NUL bytes. Raises NoSuchProcess, OutputDropped."""

    async def remove(self, guest: Guest, name: str) -> None:
        """Forget an ended process, with its later instances, and its output; absent is a success. Raises ProcessError
        while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an agent is asked to do, as its adapter needs to know it. All paths are the guest's.

    `prompt` is a file. `state` is a directory for the agent's own state, which outlives the machine. `door_url` has
    no slash at the end; `placeholder` is the key that only this session's door accepts. `model` None is the agent's
    own choice. `conversation` is the agent's own id of a conversation to go on with. `repository_config` lets
    configuration in the repository that runs code on start take effect. `command` is the line of the `command` agent.
    `ask`: in a conversation, it asks leave before it changes or runs anything; a turn of one prompt asks nobody, since
    nobody could answer. `system` is text that is added to the
    agent's own system prompt, the same for all turns of a conversation: some programs keep what that began with, some
    know only what the turn at hand brings.
    """

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


class Verdict(NamedTuple):
    """What an agent's own events say about its turn, before the work tree is looked at.

    `ok` False comes with a `code` of the error list and a `reason`. `conversation` is the id to go on with.
    """

    ok: bool
    code: str = ""
    reason: str = ""
    conversation: str | None = None


class Parser(Protocol):
    """Gives one turn's raw output its meaning. Deterministic: the same lines give the same events, so that a
    restarted daemon replays what is stored and goes on."""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        """The events of one stdout line; a line that is not understood gives AgentOutput, never an error."""

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        """The outcome after the last line. `exit_code` None: the process is gone without one."""


class Agent(Protocol):
    """The adapter of one agent program: pure, stateless, knows no provider and no process manager."""

    name: str
    program: str  # how the image's list of programs calls it; "" when it needs none
    protocols: Sequence[str]  # which doors it needs: "anthropic", "openai"

    def process(self, turn: Turn) -> ProcessSpec:
        """The process that does the turn. The prompt goes in by file or stdin, never by argv; `Turn.ask` changes
        nothing. Raises BadInput for a turn that it cannot do, a `system` that its program takes nowhere among them."""

    def parser(self) -> Parser:
        """A new one, for the output of one turn from its first line; it knows of no other."""

    def version(self) -> Command:
        """A command that prints the program's version on its first line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTerminal:
    """An agent's own terminal program in a session, whether or not a person sits there.

    `terminal` is the program, for a terminal of its own. `feed` is the guest's file to which all that
    happens in the program is added, a JSON object a line, whoever typed; it outlives the machine and grows over all
    turns and resumes of a conversation.
    """

    terminal: ProcessSpec
    feed: str


@runtime_checkable
class HasTerminal(Protocol):
    """An agent whose own terminal program a person can use, and Hiveyard can listen to and tell things. It is asked
    for by type; `Turn.conversation` goes on with one, `Turn.prompt` is not looked at by `seat`."""

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        """What to run. The program asks nothing before it takes its first prompt (themes, trust, keys)."""

    def say(self, turn: Turn) -> Command:
        """A command for the guest that gives the program the text in the file `turn.prompt`, any text, as one prompt,
        and ends with 0 when it was taken. It waits for a program that is still starting, and ends with another
        code and a reason on stderr when none will take it. The prompt then comes back as AgentPrompted."""

    def interrupt(self, turn: Turn) -> Command:
        """A command for the guest that ends the turn at work and keeps the program and its conversation. Nothing at
        work is a success."""

    def listener(self) -> Parser:
        """Gives lines of the feed their meaning, over all turns: AgentStarted (with the conversation's id) when the
        program runs, AgentPrompted begins a turn, AgentEnded ends one, AgentAsked when a person must answer."""
