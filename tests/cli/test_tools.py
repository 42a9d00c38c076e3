"""The options for tool servers, system text and variables, as a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hiveyard.cli.tools import tool_request
from hiveyard.core.errors import BadInput


def request(**options: Any) -> dict[str, Any]:
    return tool_request({"mcp": (), "mcp_file": None, "system_file": None, "env": (), **options})


def test_no_option_gives_no_field() -> None:
    assert request() == {}


def test_a_server_is_a_url_or_a_command() -> None:
    servers = request(mcp=("docs=https://host/mcp?a=b", "numbers=python3 'my server.py' --n=1"))["mcp"]
    assert servers["docs"] == {"url": "https://host/mcp?a=b"}
    assert servers["numbers"] == {"command": "python3", "args": ["my server.py", "--n=1"]}


def test_a_variable_has_its_value_or_that_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "a=b")
    assert request(env=("MINE", "OTHER=x=y", "EMPTY="))["env"] == {"MINE": "a=b", "OTHER": "x=y", "EMPTY": ""}


def test_a_file_of_servers_takes_values_of_the_callers_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORD", "t")
    docs = {"type": "http", "url": "https://host/mcp", "headers": {"Authorization": "Bearer ${WORD}"}}
    numbers = {"command": "npx", "args": ["${WORD}"], "env": {"SEED": "${WORD}"}, "tools": ["lucky"]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"docs": docs, "numbers": numbers}}))
    servers = request(mcp_file=str(tmp_path / "mcp.json"), mcp=("docs=other",))["mcp"]
    assert servers["docs"] == {"command": "other", "args": []}
    assert servers["numbers"] == {"command": "npx", "args": ["${WORD}"], "env": {"SEED": "t"}, "tools": ["lucky"]}


def test_the_system_text_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("Be brief.\n")
    assert request(system_file=str(tmp_path / "text.md")) == {"system": "Be brief.\n"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mcp": ("docs",)}, "--mcp needs NAME=URL or NAME=COMMAND, not 'docs'"),
        ({"mcp": ("docs='",)}, "--mcp docs: the command is not valid"),
        ({"env": ("NOT_THERE_AT_ALL",)}, "your environment has no variable 'NOT_THERE_AT_ALL'"),
        ({"mcp_file": "/nonexistent/mcp.json"}, "cannot be read: No such file"),
        ({"system_file": "/nonexistent/text"}, "the system text /nonexistent/text cannot be read"),
    ],
)
def test_a_bad_option_is_an_error(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        request(**options)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("{}", "has no tool servers"),
        ('{"mcpServers": {"a": {"type": "sse", "url": "https://host/"}}}', "has the type 'sse'"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": "${NOT_THERE}"}}}}', "has no variable 'NOT_THERE'"),
    ],
)
def test_a_bad_file_of_servers_is_an_error(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text(content)
    with pytest.raises(BadInput, match=complaint):
        request(mcp_file=str(tmp_path / "mcp.json"))
