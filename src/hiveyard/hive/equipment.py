"""Give a member its tools and its instructions.

`equipped` is the one place where the request of a member's session gets them."""

from __future__ import annotations

from importlib.resources import files

import msgspec

from hiveyard.core.events import Role
from hiveyard.core.tools import ToolServer
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.hive.settings import HiveSettings

MCP_PATH = "/mcp"
"""The path of the tools below the address of a session's door."""
MCP_NAME = "hive"
"""The name of the tool server in the configuration of an agent's program."""


WITHOUT_SYSTEM_TEXT = ("acp",)
"""Agents whose program takes no system text: the tool server tells them its instructions."""


def equipped(request: SpawnRequest, name: str, role: Role, settings: HiveSettings) -> SpawnRequest:
    """Return the request of a session with what a member needs: the hive's tool server at its door, and its
    instructions as added system text."""
    own = "" if request.agent in WITHOUT_SYSTEM_TEXT else instructions(name, role, settings)
    text = "\n\n".join(part for part in (own, request.system) if part) or None
    servers = {**(request.mcp or {}), MCP_NAME: ToolServer(url=f"door:{MCP_PATH}")}
    return msgspec.structs.replace(request, system=text, mcp=servers)


def instructions(name: str, role: Role, settings: HiveSettings) -> str:
    """Return the system text of a member."""
    parts = ["member", "manager"] if role == "manager" else ["member"]
    texts = [files(__package__).joinpath("instructions", f"{part}.md").read_text() for part in parts]
    values = {"name": name, "operator": settings.operator, "pronouns": settings.pronouns}
    text = "\n".join(texts)
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text
