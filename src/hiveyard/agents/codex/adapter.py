"""codex: headless as `codex exec --json` with the prompt on stdin, or in a conversation as `codex app-server`.

Its whole configuration is on its command line. It runs without its own sandbox and asks for no permission: the machine
is the sandbox. codex reads files of the repository that run code (.codex/config.toml, hooks, rules) only if the
repository is marked as trusted. AGENTS.md, which is only text, is always read, and CLAUDE.md if there is no
AGENTS.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from hiveyard.agents.codex.driver import CodexServer
from hiveyard.agents.codex.parser import CodexParser
from hiveyard.agents.shared.environment import with_variables
from hiveyard.agents.shared.system_prompt import system_text
from hiveyard.agents.shared.tool_servers import START_SECONDS, renamed, secret_variables, servers
from hiveyard.agents.shared.wording import checked_conversation, checked_model
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import Driver
from hiveyard.core.ports import Parser, Turn

_KEY = "HIVEYARD_PLACEHOLDER"
# With its own back-off (0.2 s, doubled each time) seven retries cover half a minute. These are retries of a stream,
# which codex reports. It does not report retries of a request, and the two numbers multiply.
_RETRIES = 7

# $1 is printed first, $2 is the conversation to continue. codex counts tokens over the whole conversation. The count
# before this turn is in codex's own record of the conversation, and is printed too.
_BEGIN = r"""
printf '%s\n' "$1"
mkdir -p -- "$CODEX_HOME"
if [ -n "$2" ]; then
  find "$CODEX_HOME" -name "rollout-*-$2.jsonl" -exec grep -h '"type":"token_count"' {} + | tail -n 1
fi
shift 2
exec "$@"
"""
_HOME = 'mkdir -p -- "$CODEX_HOME" && exec "$@"'


class Codex:
    """The adapter of codex."""

    name = "codex"
    program = "codex"
    protocols: Sequence[str] = ("openai",)

    def process(self, turn: Turn) -> ProcessSpec:
        turn = replace(turn, ask=False)
        command = Command(argv=_argv(turn), cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, stdin=turn.prompt)

    def parser(self) -> Parser:
        return CodexParser()

    def version(self) -> Command:
        return Command(argv=("codex", "--version"))

    # --- live conversation ------------------------------------------------------------------------------------------

    def live_process(self, turn: Turn) -> ProcessSpec:
        trust = [f'projects={{{_toml(turn.workdir)}={{trust_level="trusted"}}}}'] if turn.repository_config else []
        settings = [word for setting in (*_settings(turn), *trust) for word in ("--config", setting)]
        argv = ("sh", "-c", _HOME, "codex-home", "codex", "app-server", *settings)
        command = Command(argv=argv, cwd=turn.workdir, env=_env(turn), name=self.name)
        return ProcessSpec(name=turn.name, command=command, inbox=True)

    def driver(self, turn: Turn) -> Driver:
        conversation = None if turn.conversation is None else checked_conversation(turn.conversation)
        model = None if turn.model is None else checked_model(turn.model)
        return CodexServer(turn.workdir, conversation=conversation, model=model, ask=turn.ask)


def _argv(turn: Turn) -> tuple[str, ...]:
    conversation = "" if turn.conversation is None else checked_conversation(turn.conversation)
    argv = ["codex", "exec", *(["resume", conversation] if conversation else []), "--json", "--skip-git-repo-check"]
    argv.append("--dangerously-bypass-approvals-and-sandbox")
    if turn.repository_config:
        argv += ["--trust", "--dangerously-bypass-hook-trust"]
    for setting in _settings(turn):
        argv += ["--config", setting]
    if turn.model is not None:
        argv += ["--model", checked_model(turn.model)]
    workdir = msgspec.json.encode({"type": "workdir", "path": turn.workdir}).decode()
    return ("sh", "-c", _BEGIN, "codex-begin", workdir, conversation, *argv, "-")


def _env(turn: Turn) -> dict[str, str]:
    own = {"CODEX_HOME": f"{turn.state}/codex", _KEY: turn.placeholder, **secret_variables(turn)}
    return with_variables(turn, own)


def _toml(value: str | int | Sequence[str]) -> str:
    """Return a TOML string, number or list. In JSON they are the same."""
    return msgspec.json.encode(value).decode()


def _table(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{_toml(key)}={_toml(value)}" for key, value in values.items()) + "}"


def _tool_servers(turn: Turn) -> Iterator[str]:
    """Yield the settings of the tool servers.

    codex passes on variables of its own under the same name only."""
    for named in servers(turn):
        name, server, variables = named
        place = f"mcp_servers.{name}"
        if server.url:
            yield f"{place}.url={_toml(server.url)}"
            if variables:
                yield f"{place}.env_http_headers={_table(variables)}"
        else:
            argv = renamed(named)
            yield f"{place}.command={_toml(argv[0])}"
            yield f"{place}.args={_toml(argv[1:])}"
            yield f"{place}.env_vars={_toml(list(variables.values()))}"
        yield f"{place}.startup_timeout_sec={START_SECONDS}"
        if server.tools:
            yield f"{place}.enabled_tools={_toml(server.tools)}"
        if not turn.ask:
            yield f'{place}.default_tools_approval_mode="approve"'


def _settings(turn: Turn) -> Sequence[str]:
    """Return the settings. Values are TOML."""
    # A custom provider: with `openai` and another address, codex tries WebSockets for some seconds first.
    door = "model_providers.hiveyard"
    return (
        'model_provider="hiveyard"',
        f'{door}.name="Hiveyard\'s door"',
        f"{door}.base_url={_toml(f'{turn.door_url}/openai/v1')}",
        f'{door}.wire_api="responses"',
        f'{door}.env_key="{_KEY}"',
        f"{door}.request_max_retries=0",
        f"{door}.stream_max_retries={_RETRIES}",
        "features.unbounded_connection_retries=false",
        "features.plugins=false",
        "analytics.enabled=false",
        "check_for_update_on_startup=false",
        'project_doc_fallback_filenames=["CLAUDE.md"]',
        *([f"developer_instructions={_toml(extra)}"] if (extra := system_text(turn)) else []),
        *_tool_servers(turn),
        *(["features.shell_snapshot=false"] if turn.env or turn.mcp else []),  # a file with all variables
    )
