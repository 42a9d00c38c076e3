"""An agent for conversations: its program runs each line of its stdin as bash, and its driver reads the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Answer, Driver, Line, Step
from hiveyard.core.errors import BadInput
from hiveyard.core.events import AgentAsked, AgentEnded, AgentEvent, AgentPrompted, AgentStarted, AgentText
from hiveyard.core.ports import Turn

_PROGRAM = 'echo UP; while IFS= read -r line; do echo BEGIN; eval "$line"; echo END; done'


class Talk:
    """Lines: UP; BEGIN and END of a turn; `ASK id`, whose answer the program reads; `SAY a b` says two things."""

    conversation: str | None = None

    def __init__(self) -> None:
        self._up = False
        self._working = False
        self._asked: set[str] = set()

    @property
    def ready(self) -> bool:
        return self._up and not self._working

    def start(self) -> Step:
        return Step()

    def feed(self, line: bytes) -> Step:
        kind, _, rest = line.decode().partition(" ")
        said: Mapping[str, Sequence[AgentEvent]] = {
            "UP": [AgentStarted()],
            "BEGIN": [],
            "END": [AgentEnded(is_error=False)],
            "ASK": [AgentAsked(message="may it?", request=rest)],
        }
        self._up = True
        self._working = kind == "BEGIN" or (self._working and kind != "END")
        if kind == "ASK":
            self._asked.add(rest)
        return Step(said.get(kind, [AgentText(text=word) for word in rest.split()]))

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        return Step()

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        return [Line(key, f"{text}\n".encode())]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._working = True
        return [AgentPrompted(text=text)]

    def steer(self, key: str, text: str) -> Step:
        return Step((), [Line(key, f"{text}\n".encode())])

    def interrupt(self, key: str) -> Step:
        return Step()

    def answer(self, request: str, answer: Answer) -> Step:
        if request not in self._asked:
            raise BadInput(f"nobody waits for {request}")
        self._asked.remove(request)
        return Step((), [Line(f"answer-{request}", f"{answer.message}\n".encode())])

    def choose(self, key: str, model: str) -> Step:
        return Step()


class Talker(CommandLine):
    def live_process(self, turn: Turn) -> ProcessSpec:
        command = Command(argv=("bash", "-c", _PROGRAM), cwd=turn.workdir, env={"KEY": turn.placeholder})
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        return Talk()
