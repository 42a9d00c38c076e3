"""The instructions of members name the tools that exist."""

from __future__ import annotations

import re

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.core.events import Role
from hiveyard.core.tools import ToolServer, check_servers
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.hive.equipment import equipped, instructions
from hiveyard.hive.settings import HiveSettings
from hiveyard.hive.tools import TOOLS
from hiveyard.kit.secret import Secret
from tests.support.leaks import MARK

ARGUMENTS = {"all", "operator", "hive", "reply_to"}


@pytest.mark.parametrize("role", ["member", "manager"])
def test_the_instructions_name_each_tool_and_no_other(role: Role) -> None:
    text = instructions("ada", role, HiveSettings(operator="Grace", pronouns="she/her"))
    named = set(re.findall(r"`([a-z_]+)`", text)) - ARGUMENTS
    assert named == {name for name, tool in TOOLS.items() if role == "manager" or not tool.for_manager}
    assert text.startswith("You are ada, a member of a hive") and "(Grace, she/her)" in text
    assert "{{" not in text
    assert ("You are the manager" in text) == (role == "manager")


def test_only_what_can_be_said_of_a_tool_is_in_its_schema() -> None:
    for tool in TOOLS.values():
        schema = tool.schema()
        assert schema["type"] == "object" and schema["additionalProperties"] is False
        assert "$ref" not in str(schema)


def test_a_member_gets_the_tools_at_its_door_and_the_instructions_beside_its_own() -> None:
    own = ToolServer(command="mine")
    request = SpawnRequest(repo="/r", system="be brief", mcp={"own": own})
    found = equipped(request, "ada", "member", HiveSettings())
    assert found.system is not None and found.system.startswith("You are ada") and found.system.endswith("be brief")
    assert found.mcp == {"own": own, "hive": ToolServer(url="door:/mcp")}
    check_servers(found.mcp)
    assert equipped(SpawnRequest(repo="/r", agent="acp"), "ada", "member", HiveSettings()).system is None
    there = found.mcp["hive"].resolved("http://127.0.0.1:1", f"hv-{MARK}")
    assert there.url == "http://127.0.0.1:1/mcp" and own.resolved("http://127.0.0.1:1", "") is own
    assert there.headers["authorization"].reveal() == f"Bearer hv-{MARK}"
    assert MARK not in str(there) and found.mcp["hive"].is_local
    with pytest.raises(BadInput, match="the door of the session, which adds the headers"):
        check_servers({"x": ToolServer(url="door:/mcp", headers={"a": Secret(MARK)})})
