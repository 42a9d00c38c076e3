"""An agent that stays between turns, small and quick: its program and its driver speak in Hiveyard's own events.

remember WORD   keep a word, in the conversation
recall          say all words that are kept
say N           say N things
wait            be at work until it is interrupted; a text that is added is said
tell JSON       say a list of events, each with its `kind`: agent.KIND
ask             ask for permission, and say what was answered
model           say the model
given NAME      say a variable, reversed
fail TEXT       end the turn as a failure
die CODE        end the program

A prompt of the variable PUPPET_TALKS, a JSON object, says the events of that prompt, as `tell` does.
A prompt with messages of the hive: the lines of each are done, `tool NAME JSON` calls a tool at the door.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

import hiveyard.agents
from hiveyard.agents.command import CommandLine
from hiveyard.agents.shared.environment import with_variables
from hiveyard.agents.shared.permission import no_such_option
from hiveyard.agents.shared.tool_servers import secret_variables
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Answer, Driver, Line, Step
from hiveyard.core.errors import AgentFailed, BadInput
from hiveyard.core.events import AgentAsked, AgentEnded, AgentEvent, AgentOutput, AgentPrompted, AgentStarted
from hiveyard.core.ports import Parser, Turn, Verdict

NAME = "live-puppet"
_PROGRAM = Path(__file__).with_name("live_puppet_program.py")


class LivePuppet(CommandLine):
    """The adapter."""

    name = NAME

    def process(self, turn: Turn) -> ProcessSpec:
        return ProcessSpec(name=turn.name, command=_command(turn, "once"), stdin=turn.prompt)

    def parser(self) -> Parser:
        return _OnePrompt()

    def live_process(self, turn: Turn) -> ProcessSpec:
        return ProcessSpec(name=turn.name, command=_command(turn), inbox=True)

    def driver(self, turn: Turn) -> Driver:
        return _Talk(turn.conversation)


def _command(turn: Turn, *mode: str) -> Command:
    argv = ("python3", "-u", "-c", _PROGRAM.read_text(), turn.state, turn.conversation or "", turn.model or "", *mode)
    given = {"PUPPET_TOOLS": " ".join(turn.mcp), "PUPPET_SYSTEM": turn.system or "", **secret_variables(turn)}
    given |= {"PUPPET_DOOR": turn.door_url, "PUPPET_KEY": turn.placeholder}
    return Command(argv=argv, cwd=turn.workdir, env=with_variables(turn, given))


class _OnePrompt:
    def __init__(self) -> None:
        self._talk = _Talk(None)

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return self._talk.feed(line).events

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return Verdict(exit_code == 0, conversation=self._talk.conversation)


class _Talk:
    def __init__(self, conversation: str | None) -> None:
        self.conversation = conversation
        self._up = False
        self._working = False
        self._asked: dict[str, AgentAsked] = {}

    @property
    def ready(self) -> bool:
        return self._up and not self._working

    def start(self) -> Step:
        return Step()

    def feed(self, line: bytes) -> Step:
        try:
            event = msgspec.json.decode(line, type=AgentEvent)
        except msgspec.MsgspecError:
            return Step([AgentOutput(text=line.decode(errors="replace"))])
        if isinstance(event, AgentStarted):
            self._up, self.conversation = True, event.conversation
        if isinstance(event, AgentAsked):
            self._asked[event.request] = event
        if isinstance(event, AgentEnded):
            self._working = False
            self._asked.clear()
        return Step([event])

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        if not self._working:
            return Step()
        self._working = False
        return Step([AgentEnded(is_error=True, reason=f"it ended with {exit_code}", code=AgentFailed.code)])

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        return [_line(key, prompt=text)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._working = True
        return [AgentPrompted(text=text)]

    def steer(self, key: str, text: str) -> Step:
        return Step((), [_line(key, steer=text)])

    def interrupt(self, key: str) -> Step:
        return Step((), [_line(key, interrupt=True)] if self._working else ())

    def answer(self, request: str, answer: Answer) -> Step:
        if (asked := self._asked.get(request)) is None:
            raise BadInput(f"nobody waits for {request}")
        if answer.option and answer.option not in {one.id for one in asked.options}:
            raise no_such_option(answer.option)
        del self._asked[request]
        said = answer.option or ("yes" if answer.allow else "no")
        return Step((), [_line(f"answer-{request}", answer=f"{said} {answer.message}".strip())])

    def choose(self, key: str, model: str) -> Step:
        return Step((), [_line(key, model=model)])


def _line(key: str, **content: object) -> Line:
    return Line(key, msgspec.json.encode(content) + b"\n")


def register() -> None:
    """Make it known in this process: agents are a closed list otherwise."""
    hiveyard.agents._AGENTS[NAME] = LivePuppet()
