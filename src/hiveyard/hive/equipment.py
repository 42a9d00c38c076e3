"""Give a member its tools and its instructions.

`equipped` is the one place where the request of a member's session gets them."""

from __future__ import annotations

from importlib.resources import files

from msgspec.structs import replace

from hiveyard.core.events import Role
from hiveyard.core.tools import AT_DOOR, ToolServer
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.hive.settings import HiveSettings

MCP_PATH = "/mcp"
"""The path of the tools below the address of a session's door."""
MCP_NAME = "hive"
"""The name of the tool server in the configuration of an agent's program."""


def equipped(request: SpawnRequest, name: str, role: Role, settings: HiveSettings) -> SpawnRequest:
    """Return the request of a session with what a member needs: the hive's tool server at its door, and its
    instructions as added system text."""
    tools = {MCP_NAME: ToolServer(url=f"{AT_DOOR}{MCP_PATH}"), **(request.mcp or {})}
    system = "\n\n".join(filter(None, (instructions(name, role, settings), request.system)))
    return replace(request, mcp=tools, system=system)


def instructions(name: str, role: Role, settings: HiveSettings) -> str:
    """Return the system text of a member."""
    parts = ["member", "manager"] if role == "manager" else ["member"]
    texts = [files(__package__).joinpath("instructions", f"{part}.md").read_text() for part in parts]
    values = {"name": name, "operator": settings.operator, "pronouns": settings.pronouns}
    text = "\n".join(texts)
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text
