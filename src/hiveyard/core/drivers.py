"""The seam to agent programs that take several prompts on their stdin.

Such a program takes one prompt after another, asks for permission for its actions, and can be interrupted. Its output
reports all of this. A driver speaks one protocol of such programs. It does no I/O, never waits and has no clock: it
takes lines of output and returns events and lines for the program's stdin. The same output therefore always gives the
same result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from hiveyard.core.commands import ProcessSpec
from hiveyard.core.events import AgentEvent
from hiveyard.core.ports import Turn


class Line(NamedTuple):
    """A line for a program's stdin. Two lines with the same `key` are the same line, written once."""

    key: str
    data: bytes


class Step(NamedTuple):
    """The result of an input to a driver: events, and lines for the program's stdin, in this order."""

    events: Sequence[AgentEvent] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The decision on a permission request. `option` is the id of one of the answers that the program offered; without
    one, its plainest answer that allows or denies the action once is given. `message` tells the agent the reason for a
    denial. `input` replaces the arguments of the requested action, as a JSON object."""

    allow: bool
    option: str = ""
    message: str = ""
    input: Mapping[str, object] | None = None


class Driver(Protocol):
    """One conversation with a program, from its start.

    After a crash, a new driver is fed all output again from the first line. It then returns the same lines under the
    same keys, and those that were written before are not written again. Output is untrusted: a line that is not
    understood gives AgentOutput, never an error."""

    @property
    def ready(self) -> bool:
        """Whether the program accepts a prompt now: it has started and no turn is running."""

    @property
    def conversation(self) -> str | None:
        """The program's own id of the conversation, if known. Another process can continue the conversation with it."""

    def start(self) -> Step:
        """Return the first lines for the program."""

    def feed(self, line: bytes) -> Step:
        """Process a line of the program's stdout.

        Gives AgentStarted when the program has started, AgentEnded at the end of each turn (with an error code if it
        failed), and AgentAsked with a `request` for each decision that `answer` must make."""

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        """Process the end of the program, which ends a running turn. `exit_code` is None if there is none."""

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        """Return the lines that begin a turn. Called only when `ready`."""

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        """Process that a new prompt was sent to the program: a turn is running from now on."""

    def steer(self, key: str, text: str) -> Step:
        """Add text to the current turn. Raises BadInput if the program does not support this."""

    def interrupt(self, key: str) -> Step:
        """End the current turn soon, with AgentEnded. Does nothing if no turn is running."""

    def answer(self, request: str, answer: Answer) -> Step:
        """Answer a permission request. Only the first answer counts.

        Raises BadInput for a request that is not open, an `option` that it did not offer, and an `input` that the
        program does not support."""

    def choose(self, key: str, model: str) -> Step:
        """Select the model for later turns. Raises BadInput if the program cannot change it."""


@runtime_checkable
class HasDriver(Protocol):
    """An agent with a driver. Callers test for it with isinstance."""

    def live_process(self, turn: Turn) -> ProcessSpec:
        """Return the process that stays running, with an inbox.

        `Turn.conversation` continues a conversation. `Turn.prompt` is not used."""

    def driver(self, turn: Turn) -> Driver:
        """Return a new driver for the process of `live_process`."""
