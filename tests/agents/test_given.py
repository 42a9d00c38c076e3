"""Tool servers and variables in the settings of each program: complete, and their secret values in no argv."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from hiveyard import agents
from hiveyard.core.commands import ProcessSpec
from hiveyard.core.drivers import HasDriver
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import HasTerminal, Turn
from hiveyard.core.tools import ToolServer
from hiveyard.kit.secret import Secret
from tests.agents.test_processes import turn
from tests.support.leaks import MARK

SEED, TOKEN, WORD = f"{MARK}$(1)\"'", f"Bearer {MARK}-t", f"{MARK}-w"
DOCS = ToolServer(url="http://127.0.0.1:8377/mcp", headers={"Authorization": Secret(TOKEN)})
NUMBERS = ToolServer(command="python3", args=["numbers.py", "$HOME"], env={"SEED": Secret(SEED)}, tools=["lucky"])
GIVEN: dict[str, Any] = {"mcp": {"docs": DOCS, "numbers": NUMBERS}, "env": {"WORD": Secret(WORD)}}


def processes(name: str, asked: Turn) -> dict[str, ProcessSpec]:
    """Return the processes of all the ways to hold an agent."""
    agent = agents.by_name(name)
    found = {"one-shot": agent.process(asked)} if name != "acp" else {}
    if isinstance(agent, HasDriver):
        found["live"] = agent.live_process(asked)
    if isinstance(agent, HasTerminal):
        found["terminal"] = agent.agent_terminal(asked).terminal
    return found


@pytest.mark.parametrize("name", agents.names())
def test_every_way_to_run_an_agent_has_the_users_variables(name: str) -> None:
    for spec in processes(name, turn(command="cat", env=GIVEN["env"])).values():
        assert spec.command.env["WORD"] == WORD


@pytest.mark.parametrize("name", ["claude", "opencode", "codex", "goose"])
def test_secret_values_are_in_the_environment_and_never_in_argv(name: str) -> None:
    for spec in processes(name, turn(**GIVEN)).values():
        said = json.dumps(spec.command.words())
        assert MARK not in said
        values = json.dumps(list(spec.command.env.values()))
        assert TOKEN in values
        assert f"{MARK}$(1)" in values


@pytest.mark.parametrize(("name", "variable"), [("claude", "CLAUDE_CONFIG_DIR"), ("codex", "CODEX_HOME")])
def test_a_variable_of_the_adapter_cannot_be_replaced(name: str, variable: str) -> None:
    with pytest.raises(BadInput, match=f"the variable {variable} is set by Hiveyard"):
        agents.by_name(name).process(turn(env={variable: Secret(WORD)}))


def test_claude_gets_a_strict_configuration_with_references() -> None:
    for spec in processes("claude", turn(**GIVEN)).values():
        words = spec.command.words()
        words = json.loads(words[-1])["argv"] if words[0] == "python3" else words
        at = words.index("--mcp-config")
        servers = json.loads(words[at + 1])["mcpServers"]
        assert words[at + 2].startswith("--"), "it takes any number of arguments"
        assert "--strict-mcp-config" in words
        assert servers["docs"] == {
            "type": "http",
            "url": DOCS.url,
            "headers": {"Authorization": "${HIVEYARD_MCP_0_0}"},
        }
        assert servers["numbers"]["env"] == {"SEED": "${HIVEYARD_MCP_1_0}"}
        assert spec.command.env["HIVEYARD_MCP_1_0"] == SEED


def test_claude_may_use_the_named_tools_only() -> None:
    words = agents.by_name("claude").process(turn(**GIVEN)).command.words()
    [hook] = json.loads(words[words.index("--settings") + 1])["hooks"]["PreToolUse"]
    assert hook["matcher"] == "^mcp__numbers__(?!(?:lucky)$).*"
    assert "--settings" not in agents.by_name("claude").process(turn(mcp={"docs": DOCS})).command.words()


@pytest.mark.parametrize("ask", [False, True])
def test_opencode_has_servers_and_permissions_in_its_configuration(ask: bool) -> None:
    usual = "ask" if ask else "allow"
    for way, spec in processes("opencode", turn(**GIVEN, ask=ask)).items():
        config = json.loads(spec.command.env["OPENCODE_CONFIG_CONTENT"])
        assert config["mcp"]["docs"]["headers"] == {"Authorization": TOKEN}
        assert config["mcp"]["numbers"]["command"] == ["python3", "numbers.py", "$HOME"]
        assert config["mcp"]["numbers"]["environment"] == {"SEED": SEED}
        rules = config["permission"]
        assert rules["numbers_*"] == "deny"
        assert rules["numbers_lucky"] == ("allow" if way == "one-shot" else usual)


@pytest.mark.parametrize("ask", [False, True])
def test_codex_has_servers_in_its_settings(ask: bool) -> None:
    for way, spec in processes("codex", turn(**GIVEN, ask=ask)).items():
        words = spec.command.words()
        settings = [words[at + 1] for at, word in enumerate(words) if word == "--config"]
        servers = tomllib.loads("\n".join(settings))["mcp_servers"]
        assert servers["docs"]["env_http_headers"] == {"Authorization": "HIVEYARD_MCP_0_0"}
        assert servers["numbers"]["env_vars"] == ["HIVEYARD_MCP_1_0"]
        assert servers["numbers"]["args"][1:] == [
            'export SEED="$HIVEYARD_MCP_1_0"; exec "$@"',
            "tool-server",
            "python3",
            "numbers.py",
            "$HOME",
        ]
        assert servers["numbers"]["enabled_tools"] == ["lucky"]
        approves = servers["docs"].get("default_tools_approval_mode") == "approve"
        assert approves == (way == "one-shot" or not ask)


def test_goose_keeps_its_own_extensions_beside_the_servers() -> None:
    for spec in processes("goose", turn(**GIVEN)).values():
        extensions = json.loads(spec.command.env["EXTENSIONS"])
        assert extensions["developer"]["enabled"]
        assert extensions["docs"]["headers"] == {"Authorization": "${HIVEYARD_MCP_0_0}"}
        assert extensions["docs"]["env_keys"] == ["HIVEYARD_MCP_0_0"]
        assert extensions["numbers"]["args"][1] == 'export SEED="$HIVEYARD_MCP_1_0"; exec "$@"'
        assert extensions["numbers"]["available_tools"] == ["lucky"]
    assert "EXTENSIONS" not in agents.by_name("goose").process(turn()).command.env


def test_a_command_line_takes_no_tool_servers() -> None:
    with pytest.raises(BadInput, match="the agent `command` takes no tool servers"):
        agents.by_name("command").process(turn(command="cat", mcp={"docs": DOCS}))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"system": "Be brief."}, "takes no system prompt"),
        ({"mcp": {"n": NUMBERS}}, "the tools of n cannot be limited"),
    ],
)
def test_an_acp_program_is_refused_what_the_protocol_cannot_tell_it(given: dict[str, Any], complaint: str) -> None:
    agent = agents.by_name("acp")
    assert isinstance(agent, HasDriver)
    with pytest.raises(BadInput, match=complaint):
        agent.live_process(turn(command="my-agent", **given))
