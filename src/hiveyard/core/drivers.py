"""The seam to agent programs that stay: they take one prompt after the other on their stdin, ask leave for what they
are about to do, and can be interrupted, while all of it stands in their output.

A driver speaks one protocol of such programs. It does no I/O and no await, and knows no clock: lines of output go in,
events and lines for the program's stdin come out, so that the same output always means the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from hiveyard.core.commands import ProcessSpec
from hiveyard.core.events import AgentEvent
from hiveyard.core.ports import Turn


class Line(NamedTuple):
    """Something to be written to a program's stdin. Two lines of one `key` are one line, written once."""

    key: str
    data: bytes


class Step(NamedTuple):
    """What a driver makes of something: what happened, and what the program is to be told, in this order."""

    events: Sequence[AgentEvent] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was decided about something that an agent asked leave for. `message` tells the agent why it may not;
    `input` are other arguments for what it asked, a JSON object."""

    allow: bool
    message: str = ""
    input: Mapping[str, object] | None = None


class Driver(Protocol):
    """One conversation with a program, from its start on.

    After a crash a new driver is given all output again, from the first line. What it wants to tell the program is the
    same then, under the same keys, and has been told already. Output is hostile: what is not understood becomes
    AgentOutput, and never an error.
    """

    @property
    def ready(self) -> bool:
        """Whether it takes a prompt now: the program is up, and no turn is at work."""

    @property
    def conversation(self) -> str | None:
        """The program's own id of the conversation, to go on with in another process, when it is known."""

    def begin(self) -> Step:
        """What the program is told before all else."""

    def feed(self, line: bytes) -> Step:
        """What a line of its stdout means. AgentStarted when the program is up, AgentEnded at the end of each turn,
        with the code of an error when it failed; AgentAsked with a `request` for what `answer` is to decide."""

    def gone(self, exit_code: int | None, stderr: str) -> Step:
        """The program is gone (`exit_code` None: without one). A turn at work ends here."""

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        """What begins a turn; asked for when `ready` only."""

    def begun(self, text: str) -> Sequence[AgentEvent]:
        """The program was told a prompt that it had not been told before: a turn is at work from here on."""

    def steer(self, key: str, text: str) -> Step:
        """Something more for the turn at work. Raises BadInput where the program takes no such thing."""

    def interrupt(self, key: str) -> Step:
        """The turn at work ends soon, with AgentEnded. Nothing at work: nothing is done."""

    def answer(self, request: str, answer: Answer) -> Step:
        """The first answer counts. Raises BadInput for a request that is not open, and for other arguments where the
        program takes none."""

    def choose(self, key: str, model: str) -> Step:
        """Turns to come use this model. Raises BadInput where the program cannot change it."""


@runtime_checkable
class Converses(Protocol):
    """An agent with a driver. It is asked for by type."""

    def live(self, turn: Turn) -> ProcessSpec:
        """The process that stays, with an inbox. `Turn.conversation` goes on with one; `Turn.prompt` is not used."""

    def driver(self, turn: Turn) -> Driver:
        """A new one, for the process of `live`."""
