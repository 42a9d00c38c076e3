"""Run any command line as an agent. Its exit code is its verdict, its output is its work.

`{{prompt_file}}` becomes the path of the prompt, `{{prompt}}` the prompt itself as one word, read from that file when
the line runs: the text is never pasted into the line, so nothing in it can be taken for shell. Linux passes at most
128 KiB in one word, and a shell drops newlines at its end: a line for long prompts takes `{{prompt_file}}`, or reads
stdin, which always is the prompt.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hiveyard.agents.shared.wording import ending
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.errors import AgentFailed, BadInput, NothingDone
from hiveyard.core.events import AgentEvent, AgentOutput, clip
from hiveyard.core.ports import Parser, Turn, Verdict
from hiveyard.kit.text import decode

PROMPT_WORD_LIMIT = (128 << 10) - 1
"""Bytes that fit into one word of a command line."""

_PLACE = re.compile(r"\{\{(prompt_file|prompt)\}\}")
_LAST_LIMIT = 4096
"""Bytes that are kept of the last line of output, for the message of a failure."""
_TOO_LONG = 79  # an exit code that programs do not use; told apart by the words on stderr
_TOO_LONG_SAYS = "hiveyard: the prompt is longer than a command line takes"


class CommandLine:
    """The adapter of a command line of the user's own."""

    name = "command"
    program = ""
    protocols: Sequence[str] = ()

    def process(self, turn: Turn) -> ProcessSpec:
        """Raises BadInput for a turn without a command line, with a placeholder inside quotes, or with a `system`."""
        if not turn.command or not turn.command.strip():
            raise BadInput("the agent `command` needs a command line", hint="--command 'my-agent {{prompt_file}}'")
        if turn.system:
            raise BadInput("the agent `command` takes no system prompt", hint="give it to the program in its own way")
        command = Command(shell=_script(turn.command, turn.prompt), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return CommandParser()

    def version(self) -> Command:
        return Command(argv=("bash", "--version"))


def _script(line: str, prompt: str) -> str:
    path = shlex.quote(prompt)
    places = {"prompt_file": path, "prompt": '"$HIVEYARD_PROMPT"'}
    _check_quotes(line)
    filled = _PLACE.sub(lambda place: places[place.group(1)], line)
    if "{{prompt}}" not in line:
        return filled
    # A variable that is not exported: it is in no environment, and only the words that name it carry it.
    check = f'[ "$(wc -c < {path})" -le {PROMPT_WORD_LIMIT} ] || {{ echo "{_TOO_LONG_SAYS}" >&2; exit {_TOO_LONG}; }}'
    return f'{check}\nHIVEYARD_PROMPT="$(cat -- {path})"\n{filled}'


def _check_quotes(line: str) -> None:
    """A placeholder is a word by itself: inside quotes its own quotes would end them, and the prompt fall apart."""
    quote = ""
    at = 0
    while at < len(line):
        char = line[at]
        if quote and _PLACE.match(line, at):
            raise BadInput(
                "{{prompt}} and {{prompt_file}} bring their own quotes", hint="leave out the quotes around them"
            )
        if char == "\\" and quote != "'":
            at += 1
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
        at += 1


def _env(turn: Turn) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "OPENAI_BASE_URL": f"{turn.door_url}/openai/v1",
        "OPENAI_API_KEY": turn.placeholder,
        "HIVEYARD_PROMPT_FILE": turn.prompt,
        "HIVEYARD_STATE": turn.state,
    }


class CommandParser:
    """Each line is output, and any output is work."""

    def __init__(self) -> None:
        self._last = b""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        if line.strip():
            self._last = line[-_LAST_LIMIT:]
        return [AgentOutput(text=clip(decode(line)))]

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        if exit_code == _TOO_LONG and _TOO_LONG_SAYS in stderr:
            limit = f"a prompt of more than {PROMPT_WORD_LIMIT} bytes"
            return Verdict(False, BadInput.code, limit + " does not fit into {{prompt}}: use {{prompt_file}}")
        if exit_code != 0:
            # A task's command has its stderr in its output.
            last = stderr.strip() or decode(self._last)
            return Verdict(False, AgentFailed.code, ending("the command", exit_code, last))
        if not self._last:
            return Verdict(False, NothingDone.code, "the command printed nothing")
        return Verdict(True)
