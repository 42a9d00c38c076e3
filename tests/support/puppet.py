"""An agent with a terminal program, small and quick: it does what its prompts say, and remembers.

    remember WORD   keep a word, in the conversation
    recall          say all words that are kept
    run COMMAND     run a shell command, as a tool
    wait            be at work until it is interrupted
    ask             wait for an answer at the terminal
    fail TEXT       end the turn as a failure
    die CODE        end the program

Its feed is made of Hiveyard's own events. It is a real program in a real terminal: type at it, and that is a turn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

import hiveyard.agents
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.events import AgentEvent, AgentOutput
from hiveyard.core.ports import AgentTerminal, Parser, Turn, Verdict

NAME = "puppet"


PROGRAM = Path(__file__).with_name("puppet_program.py")
_SAY = """
for ((i = 0; i < 600; i++)); do
  [[ -s $1/pid && -e /proc/$(<"$1/pid") ]] && { cp -- "$2" "$1/said.$$" && echo "$1/said.$$" >>"$1/pipe"; exit; }
  sleep 0.1
done
exit 1
"""


class Puppet:
    """The adapter."""

    name = NAME
    program = ""
    protocols: Sequence[str] = ()

    def process(self, turn: Turn) -> ProcessSpec:
        raise NotImplementedError("this agent has only a terminal")

    def parser(self) -> Parser:
        return _Listener()

    def version(self) -> Command:
        return Command(argv=("python3", "--version"))

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        begin = ("sh", "-c", 'mkdir -p "$1"; rm -f "$1/pid"; exec python3 -u -c "$0" "$@"', PROGRAM.read_text())
        command = Command(argv=(*begin, _state(turn), turn.conversation or ""), cwd=turn.workdir)
        terminal = ProcessSpec(name=turn.name, command=command, terminal=True)
        return AgentTerminal(terminal=terminal, feed=f"{_state(turn)}/feed.jsonl")

    def send_prompt(self, turn: Turn) -> Command:
        return Command(argv=("bash", "-c", _SAY, "puppet", _state(turn), turn.prompt))

    def interrupt(self, turn: Turn) -> Command:
        return Command(shell=f"kill -USR1 $(cat {_state(turn)}/pid)")

    def feed_parser(self) -> Parser:
        return _Listener()


def _state(turn: Turn) -> str:
    return f"{turn.state}/puppet"


class _Listener:
    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        try:
            return [msgspec.json.decode(line, type=AgentEvent)]
        except msgspec.MsgspecError:
            return [AgentOutput(text=line.decode(errors="replace"))]

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        return Verdict(exit_code == 0)


def register() -> None:
    """Make it known in this process: agents are a closed list otherwise."""
    hiveyard.agents._AGENTS[NAME] = Puppet()


if __name__ == "__main__":  # a daemon that knows it, and the live puppet
    from hiveyard.daemon import main
    from tests.support import live_puppet

    register()
    live_puppet.register()
    sys.exit(main(sys.argv[1:]))
