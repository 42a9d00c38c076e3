"""Options for the agent's tool servers, system text and environment variables."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hiveyard.core.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_OPTIONS = (
    click.option(
        "--mcp", multiple=True, metavar="NAME=URL|COMMAND", help="A tool server for the agent; may be repeated."
    ),
    click.option("--mcp-file", type=click.Path(), help="Tool servers from a JSON file with mcpServers."),
    click.option("--system-file", type=click.Path(), help="Add the text of a file to the agent's system prompt."),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="A variable for the agent; without =VALUE it has your value. May be repeated.",
    ),
)


def tool_options(verb: F) -> F:
    """Add the options of this module."""
    for option in reversed(_OPTIONS):
        verb = option(verb)
    return verb


def tool_request(options: MutableMapping[str, Any]) -> dict[str, Any]:
    """Take the values of these options out of `options`, and return the fields of a request for them."""
    servers = _servers(options.pop("mcp"), options.pop("mcp_file"))
    file, env = options.pop("system_file"), _variables(options.pop("env"))
    system = None if file is None else _read(file, "the system text")
    return {name: value for name, value in (("mcp", servers), ("system", system), ("env", env)) if value}


def _variables(words: Sequence[str]) -> dict[str, str]:
    """Return variables by name. A value in a command line can be seen by others, one of the environment cannot."""
    found = {}
    for word in words:
        name, given, value = word.partition("=")
        found[name] = value if given else _own(name, f"--env {name}")
    return found


def _own(name: str, where: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise BadInput(f"{where}: your environment has no variable {name[:80]!r}", hint=f"export {name}=...") from None


def _servers(words: Sequence[str], file: str | None) -> dict[str, Any]:
    servers = {} if file is None else _from_file(file)
    for word in words:
        name, given, rest = word.partition("=")
        if not given or not rest.strip():
            raise BadInput(f"--mcp needs NAME=URL or NAME=COMMAND, not {name[:80]!r}", hint="--mcp 'docs=npx docs-mcp'")
        servers[name] = _server(name, rest)
    return servers


def _server(name: str, text: str) -> dict[str, Any]:
    if text.startswith(("http://", "https://")):
        return {"url": text}
    try:
        command, *args = shlex.split(text)
    except ValueError as error:
        raise BadInput(f"--mcp {name}: the command is not valid: {error}") from None
    return {"command": command, "args": args}


def _from_file(file: str) -> dict[str, Any]:
    """Return the servers of a file, in the form that other programs use, too."""
    try:
        data = json.loads(_read(file, "the file of tool servers"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the file of tool servers {file} is not JSON: {error}") from None
    servers = data.get("mcpServers") if isinstance(data, dict) else None
    if not isinstance(servers, dict) or not all(isinstance(server, dict) for server in servers.values()):
        raise BadInput(f'{file} has no tool servers: it must be {{"mcpServers": {{"NAME": {{...}}}}}}')
    return {name: _entry(name, server, file) for name, server in servers.items()}


def _entry(name: str, server: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return one server. References such as ${TOKEN} in headers and variables are replaced."""
    kind = server.get("type", "http" if "url" in server else "stdio")
    if kind not in ("http", "streamable-http", "stdio"):
        raise BadInput(f"{file}: the tool server {name} has the type {kind!r}; http and stdio are supported")
    entry = {key: value for key, value in server.items() if key != "type"}
    for key in ("headers", "env"):
        if isinstance(values := entry.get(key), dict):
            entry[key] = {name: _filled(value, file) for name, value in values.items()}
    return entry


def _filled(value: object, file: str) -> object:
    return _REFERENCE.sub(lambda found: _own(found[1], file), value) if isinstance(value, str) else value


def _read(file: str, what: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{what} {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} {file} is not UTF-8: byte {error.start}") from error
