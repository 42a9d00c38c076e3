"""Any program that speaks the Agent Client Protocol (agentclientprotocol.com) on its stdin and stdout."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from hiveyard.agents.shared.environment import environment
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Parser, Turn


class AcpProgram:
    """The adapter of the user's own command line for such a program. It only runs live."""

    name = "acp"
    program = ""
    protocols: Sequence[str] = ()

    def process(self, turn: Turn) -> ProcessSpec:
        raise _only_live()

    def parser(self) -> Parser:
        raise _only_live()

    def version(self) -> Command:
        return Command(argv=("bash", "--version"))

    def live_process(self, turn: Turn) -> ProcessSpec:
        """Return the process. Raises BadInput for a turn without a command line, and for what the protocol cannot tell
        the program."""
        if not turn.command or not turn.command.strip():
            raise BadInput("the agent `acp` needs a command line", hint="hv spawn --acp 'my-agent --acp'")
        if turn.system:
            raise BadInput("the agent `acp` takes no system prompt", hint="put it into the command line")
        if limited := next((name for name, server in turn.mcp.items() if server.tools), None):
            raise BadInput(f"the tools of {limited} cannot be limited for the agent `acp`", hint="leave out `tools`")
        argv = ("bash", "-c", f"exec {turn.command}")
        command = Command(argv=argv, cwd=turn.workdir, env=environment(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        from hiveyard.agents.acp.driver import QUIRKS, Acp, Quirks  # importing its messages takes most of a second

        quirks = QUIRKS.get(_program(turn.command or ""), Quirks())
        return Acp(
            turn.workdir,
            conversation=turn.conversation,
            model=turn.model,
            ask=turn.ask,
            quirks=quirks,
            mcp=turn.mcp,
        )


def _only_live() -> BadInput:
    return BadInput("an ACP program runs in a session, not in a task", hint="hv spawn --acp 'my-agent --acp'")


def _program(line: str) -> str:
    """Return the name of the program that a command line starts, as far as it can be told."""
    try:
        words = shlex.split(line)
    except ValueError:
        return ""
    return PurePosixPath(words[0]).name if words else ""
