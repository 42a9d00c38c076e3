"""Tool servers in the settings of agent programs.

Settings are words of a command line, which anybody on the machine can read, and files, which are copied with a session.
So they name environment variables, and the environment of the program has the secret values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Turn
from hiveyard.core.tools import ToolServer

START_SECONDS = 120
"""Seconds that a server may take to start: machines that are emulated are slow."""


class NamedServer(NamedTuple):
    """A server with its name. `variables` are the environment variables that have the values of its headers or of its
    own variables, by the names of these."""

    name: str
    server: ToolServer
    variables: Mapping[str, str]


def servers(turn: Turn) -> Iterator[NamedServer]:
    """Yield the turn's tool servers."""
    for at, (name, server) in enumerate(turn.mcp.items()):
        yield NamedServer(name, server, {key: f"HIVEYARD_MCP_{at}_{n}" for n, key in enumerate(server.values)})


def secret_variables(turn: Turn) -> dict[str, str]:
    """Return the environment variables with the secret values of all tool servers."""
    return {
        variable: named.server.values[key].reveal()
        for named in servers(turn)
        for key, variable in named.variables.items()
    }


def renamed(named: NamedServer) -> tuple[str, ...]:
    """Return the command of a server, in a shell that gives it its variables under their own names."""
    exports = "".join(f'export {key}="${variable}"; ' for key, variable in named.variables.items())
    own = ("sh", "-c", f'{exports}exec "$@"', "tool-server") if exports else ()
    return (*own, named.server.command, *named.server.args)


def refuse_servers(turn: Turn, program: str) -> None:
    """Raise BadInput for a turn with tool servers, which the program cannot be given."""
    if turn.mcp:
        raise BadInput(f"{program} takes no tool servers", hint="leave out --mcp, or use another --agent")
