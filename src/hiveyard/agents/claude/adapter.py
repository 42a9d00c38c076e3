"""Claude Code: headless as `claude -p`, in a live conversation, or in its own terminal.

Headless, it prints stream-json and reads the prompt from stdin. In a conversation both ends are stream-json.

It runs as an unprivileged user in a machine of its own, so it need not ask for permission. Files of the repository that
run code at the start (.mcp.json, hooks, apiKeyHelper, env) belong to the setting sources `project` and `local`, which
are left out. The repository's CLAUDE.md is only text. It is loaded as the CLAUDE.md of an additional directory, and
AGENTS.md if there is no CLAUDE.md, as the program itself would do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from hiveyard.agents.claude.driver import ClaudeStream
from hiveyard.agents.claude.feed import ClaudeFeedParser
from hiveyard.agents.claude.parser import ClaudeParser
from hiveyard.agents.shared import terminal_process
from hiveyard.agents.shared.environment import with_variables
from hiveyard.agents.shared.system_prompt import system_text, with_file
from hiveyard.agents.shared.tool_servers import START_SECONDS, NamedServer, secret_variables, servers
from hiveyard.agents.shared.wording import checked_conversation, checked_model
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import AgentTerminal, Parser, Turn

# With its own back-off (0.5 s, doubled each time) six retries cover half a minute: a daemon that restarts, a busy
# vendor. With the default of ten, a wrong key would take minutes to fail.
_RETRIES = "6"

# $1 is a file with additional text for the system prompt, or empty. The program takes only one such file.
_AGENTS_MD = """
more=$1; shift
if [ -f AGENTS.md ] && [ ! -e CLAUDE.md ] && [ ! -e .claude/CLAUDE.md ]; then
  if [ "$more" ]; then { echo; cat AGENTS.md; } >>"$more"; else more=AGENTS.md; fi
fi
if [ "$more" ]; then set -- "$@" --append-system-prompt-file "$more"; fi
exec "$@"
"""


class Claude:
    """The adapter of Claude Code."""

    name = "claude"
    program = "claude"
    protocols: Sequence[str] = ("anthropic",)

    def process(self, turn: Turn) -> ProcessSpec:
        turn = replace(turn, ask=False)
        command = Command(argv=_argv(turn), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return ClaudeParser()

    def version(self) -> Command:
        return Command(argv=("claude", "--version"))

    # --- live conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        argv = _argv(turn, "--input-format", "stream-json", "--permission-prompt-tool", "stdio")
        command = Command(argv=argv, cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        return ClaudeStream(turn.workdir, turn.conversation, ask=turn.ask)

    # --- terminal ---------------------------------------------------------------------------------------------------

    def agent_terminal(self, turn: Turn) -> AgentTerminal:
        settings = {
            **_place(turn),
            "workdir": turn.workdir,
            "argv": _with_system_prompt(turn, ("claude", *_options(turn))),
            "conversation": None if turn.conversation is None else checked_conversation(turn.conversation),
            # At a terminal the program asks about the repository's MCP servers, unless the user accepted them before.
            "settings": ({"enableAllProjectMcpServers": True} if turn.repository_config else {}) | _tool_limits(turn),
        }
        return AgentTerminal(
            terminal=terminal_process.agent_terminal(turn, self.name, settings, _env(turn)),
            feed=terminal_process.feed(turn, self.name),
        )

    def send_prompt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "send", {**_place(turn), "prompt": turn.prompt}))

    def interrupt(self, turn: Turn) -> Command:
        return Command(argv=terminal_process.argv_of(turn, self.name, "interrupt", _place(turn)))

    def feed_parser(self) -> Parser:
        return ClaudeFeedParser()


def _place(turn: Turn) -> dict[str, str]:
    return {"config": _config(turn)}


def _config(turn: Turn) -> str:
    return f"{turn.state}/claude"


def _argv(turn: Turn, *extra: str) -> tuple[str, ...]:
    argv = ["claude", "-p", "--output-format", "stream-json", "--verbose", *extra, *_options(turn)]
    if limits := _tool_limits(turn):
        argv += ["--settings", _json(limits)]
    if turn.conversation is not None:
        argv += ["--resume", checked_conversation(turn.conversation)]
    return _with_system_prompt(turn, argv)


def _options(turn: Turn) -> list[str]:
    argv = []
    if turn.mcp:
        # Like --add-dir, it takes any number of arguments, so another option must follow it.
        argv += ["--mcp-config", _json({"mcpServers": dict(map(_server, servers(turn)))})]
    argv += ["--permission-mode", "manual" if turn.ask else "bypassPermissions"]
    if not turn.repository_config:
        # --add-dir takes any number of arguments, so another option must follow it.
        argv += ["--add-dir", turn.workdir, "--setting-sources", "user", "--strict-mcp-config"]
    if turn.model is not None:
        argv += ["--model", checked_model(turn.model)]
    return argv


def _server(named: NamedServer) -> tuple[str, dict[str, object]]:
    """Return a server as the program's settings have it. It replaces ${NAME} by the variable of that name."""
    name, server, variables = named
    values = {key: f"${{{variable}}}" for key, variable in variables.items()}
    if server.url:
        return name, {"type": "http", "url": server.url, "headers": values}
    return name, {"type": "stdio", "command": server.command, "args": server.args, "env": values}


def _tool_limits(turn: Turn) -> dict[str, object]:
    """Return settings that deny all other tools of servers whose tools are limited.

    The program's own rules can name the tools to deny, but not all except some."""
    answer = {"permissionDecision": "deny", "permissionDecisionReason": "This session may not use this tool."}
    output = _json({"hookSpecificOutput": {"hookEventName": "PreToolUse", **answer}})
    deny = {"type": "command", "command": f"echo '{output}'"}
    limited = {name: "|".join(map(re.escape, server.tools)) for name, server, _ in servers(turn) if server.tools}
    matchers = [f"^mcp__{name}__(?!(?:{tools})$).*" for name, tools in limited.items()]
    hooks = [{"matcher": matcher, "hooks": [deny]} for matcher in matchers]
    return {"hooks": {"PreToolUse": hooks}} if hooks else {}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _with_system_prompt(turn: Turn, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command with the option for additional text in the system prompt."""
    path = f"{_config(turn)}/system/{turn.name}.md"
    extra = path if system_text(turn) else ""
    if not turn.repository_config:
        argv = ("sh", "-c", _AGENTS_MD, "claude-agents-md", extra, *argv)
    elif extra:
        argv = (*argv, "--append-system-prompt-file", extra)
    return with_file(turn, path, argv)


def _env(turn: Turn) -> dict[str, str]:
    env = {
        "ANTHROPIC_BASE_URL": f"{turn.door_url}/anthropic",
        "ANTHROPIC_API_KEY": turn.placeholder,
        "CLAUDE_CONFIG_DIR": _config(turn),
        "CLAUDE_CODE_MAX_RETRIES": _RETRIES,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
        **secret_variables(turn),
    }
    if turn.mcp:
        env["MCP_TIMEOUT"] = str(START_SECONDS * 1000)
    if not turn.repository_config:
        env["CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD"] = "1"
    return with_variables(turn, env)
