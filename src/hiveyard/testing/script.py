"""The script of a scripted model: a list of steps, one for each reply to a prompt.

A step is data, so a script can be in a JSON file, in Python, or in the prompt itself:

    [{"thinking": "A small fix.", "text": "I will look.", "calls": [{"shell": "pytest -q"}]},
     {"calls": [{"write": {"path": "a.py", "content": "x = 1\\n"}}]},
     {"text": "Done.", "usage": {"input": 1200, "output": 30}}]

`shell` and `write` are portable: they become the corresponding tools of the agent.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from hiveyard.core.errors import BadInput

_NAMED = re.compile(r"\[\[script:([A-Za-z0-9_.-]{1,64})\]\]")
_CARRIED = re.compile(r"\[\[steps:([A-Za-z0-9_-]+=*)\]\]")
_MARKER = re.compile(rf"{_NAMED.pattern}|{_CARRIED.pattern}")


class Piece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all parts of a script."""


class File(Piece, frozen=True, kw_only=True):
    """A file to write. A relative path is below the agent's working directory."""

    path: str
    content: str


class Call(Piece, frozen=True, kw_only=True, omit_defaults=True):
    """A tool call: a shell command, a file to write, or a tool of the agent by its own name with its input. codex has
    the tools of servers in namespaces: `namespace/name`."""

    shell: str | None = None
    write: File | None = None
    tool: str | None = None
    input: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if sum(kind is not None for kind in (self.shell, self.write, self.tool)) != 1:
            raise ValueError("a call needs exactly one of shell, write and tool")


class Tokens(Piece, frozen=True, kw_only=True):
    """The usage that the reply reports. `input` excludes tokens read from a cache."""

    input: int = 1000
    output: int = 50
    cache_read: int = 0
    cache_write: int = 0


class Fault(Piece, frozen=True, kw_only=True):
    """A failure of a request. `times` 0 means always; after `times` failures the step is answered normally.

    `status` is an HTTP error status. `cut` breaks the connection in the middle of the reply instead."""

    status: int = 0
    cut: bool = False
    times: int = 0
    message: str = ""
    headers: dict[str, str] = {}

    def __post_init__(self) -> None:
        if bool(self.status) == self.cut:
            raise ValueError("a fault needs exactly one of status and cut")


class Step(Piece, frozen=True, kw_only=True, omit_defaults=True):
    """A reply: thinking, then text, then tool calls. A reply without calls ends the agent's turn.

    `stop` "length" reports that the reply was cut at its token limit. `delay` is the seconds before the first byte,
    `chunk_delay` the seconds between the pieces of a stream. `gate` names a gate in the middle of the reply: the rest
    of it is sent when the server's gate of that name is opened."""

    thinking: str = ""
    text: str = ""
    calls: list[Call] = []
    usage: Tokens = Tokens()
    stop: Literal["end", "length"] = "end"
    fault: Fault | None = None
    delay: float = 0.0
    chunk_delay: float = 0.0
    gate: str = ""


Script = Sequence[Step]


def say(text: str, *, thinking: str = "") -> Step:
    """Return a reply of text only, which ends a turn."""
    return Step(text=text, thinking=thinking)


def shell(command: str, *, text: str = "") -> Step:
    """Return a reply that runs a command."""
    return Step(text=text, calls=[Call(shell=command)])


def write(path: str, content: str, *, text: str = "") -> Step:
    """Return a reply that writes a file."""
    return Step(text=text, calls=[Call(write=File(path=path, content=content))])


def tool(name: str, *, text: str = "", **arguments: object) -> Step:
    """Return a reply that calls one of the agent's tools by its own name."""
    return Step(text=text, calls=[Call(tool=name, input=arguments)])


def refuse(status: int, *, times: int = 0, message: str = "", headers: Mapping[str, str] | None = None) -> Step:
    """Return a step whose request gets an HTTP error, `times` times or always."""
    fault = Fault(status=status, times=times, message=message, headers=dict(headers or {}))
    return Step(text="at last", fault=fault)


def cut(*, times: int = 0, text: str = "This reply will never be heard to its end.") -> Step:
    """Return a reply that breaks off in the middle, `times` times or always."""
    return Step(text=text, fault=Fault(cut=True, times=times))


def load(data: bytes | str) -> list[Step]:
    """Parse a script from JSON. Raises BadInput with the position of the error."""
    try:
        return msgspec.json.decode(data, type=list[Step])
    except msgspec.MsgspecError as error:
        raise BadInput(f"the script is not valid: {error}", hint="pydoc hiveyard.testing.script") from error


def in_prompt(script: Script) -> str:
    """Return a marker that contains a complete script. It may be anywhere in a prompt, and survives quoting."""
    return f"[[steps:{base64.urlsafe_b64encode(msgspec.json.encode(list(script))).decode()}]]"


def named_by(prompt: str, scripts: Mapping[str, Script]) -> Script | None:
    """Return the script of the last marker in a prompt: `[[script:NAME]]`, or one made by `in_prompt`.

    The last one counts, because an agent may join a failed prompt and the next one. Returns None without a marker.
    Raises BadInput for an unknown name or a broken marker."""
    markers = list(_MARKER.finditer(prompt))
    if not markers:
        return None
    name, carried = markers[-1].groups()
    if carried is not None:
        return _carried(carried)
    if name not in scripts:
        raise BadInput(f"no script is called {name!r}; known scripts: {', '.join(sorted(scripts)) or 'none'}")
    return scripts[name]


def _carried(marker: str) -> list[Step]:
    try:
        return load(base64.urlsafe_b64decode(marker))
    except ValueError as error:
        raise BadInput(f"a marker in the prompt is broken: {error}") from error
