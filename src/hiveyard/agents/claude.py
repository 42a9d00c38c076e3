"""Claude Code, headless: `claude -p` with stream-json out and the prompt on stdin.

It runs as an unprivileged user in a machine of its own, so it need not ask for permission. What the repository brings
that would run code on start (.mcp.json, hooks, apiKeyHelper, env) comes from the setting sources `project` and
``local`, which are left out; its CLAUDE.md, which is only words, is let in again as that of an additional directory,
and so is AGENTS.md where there is no CLAUDE.md, as the program itself would.
"""

from __future__ import annotations

from collections.abc import Sequence

from hiveyard.agents.claude_stream import ClaudeParser
from hiveyard.agents.words import checked_conversation, checked_model
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.ports import Parser, Turn

# With its own back-off (0.5 s, doubled each time) six tries bridge half a minute: a daemon that restarts, a busy
# vendor. The default of ten would let a wrong key hang for minutes.
_RETRIES = "6"

_AGENTS_MD = """
if [ -f AGENTS.md ] && [ ! -e CLAUDE.md ] && [ ! -e .claude/CLAUDE.md ]; then
  set -- "$@" --append-system-prompt-file AGENTS.md
fi
exec "$@"
"""


class Claude:
    """The adapter of Claude Code."""

    name = "claude"
    program = "claude"
    protocols: Sequence[str] = ("anthropic",)

    def process(self, turn: Turn) -> ProcessSpec:
        command = Command(argv=_argv(turn), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return ClaudeParser()

    def version(self) -> Command:
        return Command(argv=("claude", "--version"))


def _argv(turn: Turn) -> tuple[str, ...]:
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose"]
    argv += ["--permission-mode", "bypassPermissions"]
    if not turn.repository_config:
        # --add-dir takes any number of words: another option must follow it.
        argv += ["--add-dir", turn.workdir, "--setting-sources", "user", "--strict-mcp-config"]
    if turn.model is not None:
        argv += ["--model", checked_model(turn.model)]
    if turn.conversation is not None:
        argv += ["--resume", checked_conversation(turn.conversation)]
    if turn.repository_config:
        return tuple(argv)
    return ("sh", "-c", _AGENTS_MD, "claude-agents-md", *argv)


def _env(turn: Turn) -> dict[str, str]:
    env = {
        "ANTHROPIC_BASE_URL": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "CLAUDE_CONFIG_DIR": f"{turn.state}/claude",
        "CLAUDE_CODE_MAX_RETRIES": _RETRIES,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
    }
    if not turn.repository_config:
        env["CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD"] = "1"
    return env
