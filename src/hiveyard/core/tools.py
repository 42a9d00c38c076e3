"""Tool servers (Model Context Protocol) and environment variables that a user gives to an agent.

Values of headers and variables are secrets: they never reach an event, a log, an error or a host's command line."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from hiveyard.core.errors import BadInput
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import one_line

MAX_SERVERS = 20
MAX_BYTES = 60_000
"""Limit of all servers together and of all variables together: programs get them in one word, of at most 128 KiB."""

_SERVER = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}\Z")
_TOOL = re.compile(r"[A-Za-z0-9_.-]{1,100}\Z")
_URL = re.compile(r"https?://(?P<host>\[[^\]\s]+\]|[^/?#@:\s]+)(?::\d+)?(?:[/?]\S*)?\Z")
AT_DOOR = "door:"
"""The beginning of the address of a server at the session's own door; the path follows."""
_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_SYSTEM = ("HOME", "PATH", "PWD", "USER", "LOGNAME", "SHELL", "IFS", "ENV", "LD_PRELOAD", "LD_LIBRARY_PATH")
_MODEL = (
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    *("CLAUDE_CODE_OAUTH_TOKEN", "CODEX_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
)
RESERVED = frozenset((*_SYSTEM, *_MODEL))
"""Variables that the machine and the door set, or that would take their place."""
_RESERVED_PREFIXES = ("HIVEYARD_", "BASH", "SHELLOPTS", "XDG_")


class ToolServer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A tool server: at a `url`, with `headers`; or a program of the guest, `command` with `args` and `env`. If `tools`
    is not empty, the agent may use only these of its tools. The url `door:/PATH` is a path of the session's own door,
    which gets the session's key with each request."""

    url: str = ""
    headers: dict[str, Secret] = {}
    command: str = ""
    args: list[str] = []
    env: dict[str, Secret] = {}
    tools: list[str] = []

    @property
    def values(self) -> Mapping[str, Secret]:
        """The secret values by name: the headers of a URL, or the variables of a program."""
        return self.headers or self.env

    @property
    def at_door(self) -> bool:
        """Whether the server is at the session's door."""
        return self.url.startswith(f"{AT_DOOR}/")

    def resolved(self, door_url: str, key: str) -> ToolServer:
        """Return the server with the address of the session's door, and its key, if it is there."""
        if not self.at_door:
            return self
        headers = {"authorization": Secret(f"Bearer {key}")}
        return msgspec.structs.replace(self, url=door_url + self.url.removeprefix(AT_DOOR), headers=headers)

    @property
    def is_local(self) -> bool:
        """Whether the server is inside the machine, or at its door."""
        found = _URL.match(self.url)
        return found is None or found["host"].lower() in _LOCAL


def check_servers(servers: Mapping[str, ToolServer]) -> None:
    """Validate tool servers by name. Raises BadInput."""
    if len(servers) > MAX_SERVERS:
        raise BadInput(f"a session can have {MAX_SERVERS} tool servers, not {len(servers)}")
    for name, server in servers.items():
        if not _SERVER.match(name):
            raise BadInput(
                f"{name[:80]!r} is not a valid name of a tool server: a letter, then letters, digits, _ and -"
            )
        _check_server(f"the tool server {name}", server)
    size = sum(map(_size, servers.values()))
    if size > MAX_BYTES:
        raise BadInput(f"the tool servers have {size} bytes; the limit is {MAX_BYTES}")


def check_variables(env: Mapping[str, Secret]) -> None:
    """Validate the variables for an agent's process. Raises BadInput, which names no value."""
    for name, value in env.items():
        _check_variable("an environment variable", name, value)
        if name.upper() in RESERVED or name.startswith(_RESERVED_PREFIXES):
            raise BadInput(f"the variable {name} is set by Hiveyard", hint="give it another name, or leave it out")
    size = sum(len(name) + len(_plain(value)) for name, value in env.items())
    if size > MAX_BYTES:
        raise BadInput(f"the environment variables have {size} bytes; the limit is {MAX_BYTES}")


def _check_server(what: str, server: ToolServer) -> None:
    if bool(server.url) == bool(server.command):
        raise BadInput(f"{what} needs either a url or a command", hint="--mcp NAME=URL or --mcp NAME=COMMAND")
    if server.url and (server.args or server.env):
        raise BadInput(f"{what} has a url, so it cannot have args and env")
    if server.command and server.headers:
        raise BadInput(f"{what} has a command, so it cannot have headers")
    if server.at_door and server.headers:
        raise BadInput(f"{what} is at the door of the session, which adds the headers")
    if server.url and not server.at_door and not _URL.match(server.url):
        raise BadInput(
            f"the url of {what.removeprefix('the ')} is not a http:// or https:// address",
            hint="a key belongs into headers",
        )
    for word in (server.command, *server.args):
        if "\0" in word:
            raise BadInput(f"the command of {what.removeprefix('the ')} contains a NUL character")
    for tool in server.tools:
        if not _TOOL.match(tool):
            raise BadInput(f"{one_line(tool, 80)!r} is not a valid name of a tool of {what.removeprefix('the ')}")
    for name, value in server.headers.items():
        if not _HEADER.match(name):
            raise BadInput(f"{one_line(name, 80)!r} is not a valid name of a header of {what.removeprefix('the ')}")
        if _CONTROL.search(value.reveal()):
            raise BadInput(f"the header {name} of {what.removeprefix('the ')} contains a control character")
    for name, value in server.env.items():
        _check_variable(f"a variable of {what.removeprefix('the ')}", name, value)


def _check_variable(what: str, name: str, value: Secret) -> None:
    if not _VARIABLE.match(name):
        raise BadInput(f"{one_line(name, 80)!r} is not a valid name of {what}")
    if "\0" in value.reveal():
        raise BadInput(f"the value of {name} contains a NUL character")
    _plain(value, name)


def _plain(value: Secret, name: str = "") -> bytes:
    try:
        return value.reveal().encode()
    except UnicodeEncodeError:
        raise BadInput(f"the value of {name} is not UTF-8") from None


def _size(server: ToolServer) -> int:
    words = (server.url, server.command, *server.args, *server.tools, *server.values)
    try:
        return sum(len(word.encode()) for word in words) + sum(len(_plain(value)) for value in server.values.values())
    except UnicodeEncodeError:
        raise BadInput("a tool server's command or address is not UTF-8") from None
