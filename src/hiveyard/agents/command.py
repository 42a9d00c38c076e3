"""Run any command line as an agent. Its exit code is the verdict, its output is the result.

`{{prompt_file}}` is replaced by the path of the prompt, `{{prompt}}` by the prompt itself as one word, read from that
file when the line runs. The text is never inserted into the line, so no part of it is interpreted by the shell. Linux
passes at most 128 KiB in one word, and a shell removes newlines at its end. A line for long prompts uses
`{{prompt_file}}`, or reads stdin, which always is the prompt."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hiveyard.agents.shared.environment import environment
from hiveyard.agents.shared.tool_servers import refuse_servers
from hiveyard.agents.shared.wording import ending
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.errors import AgentFailed, BadInput, NothingDone
from hiveyard.core.events import AgentEvent, AgentOutput, clip
from hiveyard.core.ports import Parser, Turn, Verdict
from hiveyard.kit.text import decode

PROMPT_WORD_LIMIT = (128 << 10) - 1
"""The largest word of a command line, in bytes."""

_PLACEHOLDER = re.compile(r"\{\{(prompt_file|prompt)\}\}")
_LAST_LINE_LIMIT = 4096
"""The number of bytes kept of the last line of output, for the message of a failure."""
_TOO_LONG = 79  # an exit code that programs do not use; the message on stderr confirms it
_TOO_LONG_MESSAGE = "hiveyard: the prompt is too long for a command line"


class CommandLine:
    """The adapter of the user's own command line."""

    name = "command"
    program = ""
    protocols: Sequence[str] = ()

    def process(self, turn: Turn) -> ProcessSpec:
        """Return the process. Raises BadInput for a turn without a command line, with a quoted placeholder, or with a
        `system` or tool servers."""
        if not turn.command or not turn.command.strip():
            raise BadInput("the agent `command` needs a command line", hint="--command 'my-agent {{prompt_file}}'")
        if turn.system:
            raise BadInput("the agent `command` takes no system prompt", hint="put it into the command line")
        refuse_servers(turn, "the agent `command`")
        command = Command(
            shell=_script(turn.command, turn.prompt), cwd=turn.workdir, env=environment(turn), name=self.name
        )
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return CommandParser()

    def version(self) -> Command:
        return Command(argv=("bash", "--version"))


def _script(line: str, prompt: str) -> str:
    path = shlex.quote(prompt)
    values = {"prompt_file": path, "prompt": '"$HIVEYARD_PROMPT"'}
    _check_quotes(line)
    filled = _PLACEHOLDER.sub(lambda place: values[place.group(1)], line)
    if "{{prompt}}" not in line:
        return filled
    # The variable is not exported, so it is in no environment.
    check = (
        f'[ "$(wc -c < {path})" -le {PROMPT_WORD_LIMIT} ] || {{ echo "{_TOO_LONG_MESSAGE}" >&2; exit {_TOO_LONG}; }}'
    )
    return f'{check}\nHIVEYARD_PROMPT="$(cat -- {path})"\n{filled}'


def _check_quotes(line: str) -> None:
    """Raise BadInput for a quoted placeholder: its own quotes would end the quotes around it, and the prompt would be
    split."""
    quote = ""
    at = 0
    while at < len(line):
        char = line[at]
        if quote and _PLACEHOLDER.match(line, at):
            raise BadInput("{{prompt}} and {{prompt_file}} are quoted already", hint="remove the quotes around them")
        if char == "\\" and quote != "'":
            at += 1
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
        at += 1


class CommandParser:
    """The parser of a command's output. Each line is output, and any output counts as work."""

    def __init__(self) -> None:
        self._last_line = b""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        if line.strip():
            self._last_line = line[-_LAST_LINE_LIMIT:]
        return [AgentOutput(text=clip(decode(line)))]

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        if exit_code == _TOO_LONG and _TOO_LONG_MESSAGE in stderr:
            limit = f"a prompt of more than {PROMPT_WORD_LIMIT} bytes"
            return Verdict(False, BadInput.code, limit + " does not fit into {{prompt}}: use {{prompt_file}}")
        if exit_code != 0:
            # The command of a task has its stderr in its output.
            last = stderr.strip() or decode(self._last_line)
            return Verdict(False, AgentFailed.code, ending("the command", exit_code, last))
        if not self._last_line:
            return Verdict(False, NothingDone.code, "the command printed nothing")
        return Verdict(True)
