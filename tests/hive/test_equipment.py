"""The instructions of members name the tools that exist."""

from __future__ import annotations

import re

import pytest

from hiveyard.core.events import Role
from hiveyard.hive.equipment import instructions
from hiveyard.hive.settings import HiveSettings
from hiveyard.hive.tools import TOOLS

ARGUMENTS = {"all", "operator", "hive", "reply_to"}


@pytest.mark.parametrize("role", ["member", "manager"])
def test_the_instructions_name_each_tool_and_no_other(role: Role) -> None:
    text = instructions("ada", role, HiveSettings(operator="Grace", pronouns="she/her"))
    named = set(re.findall(r"`([a-z_]+)`", text)) - ARGUMENTS
    assert named == set(TOOLS)
    assert text.startswith("You are ada, a member of a hive") and "(Grace, she/her)" in text
    assert "{{" not in text
    assert ("You are the manager" in text) == (role == "manager")


def test_only_what_can_be_said_of_a_tool_is_in_its_schema() -> None:
    for tool in TOOLS.values():
        schema = tool.schema()
        assert schema["type"] == "object" and schema["additionalProperties"] is False
        assert "$ref" not in str(schema)
