"""Fit a step to a request: portable calls become calls of the tools that the agent offers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from hiveyard.kit.shape import items, record, text
from hiveyard.testing.conversation import CUSTOM, Asked
from hiveyard.testing.script import Call, File, Step, Tokens

_SHELLS = ("Bash", "bash", "shell", "exec_command", "run_shell_command", "local_shell")
_WRITERS = ("Write", "write", "write_file", "create_file")
_PATHS = ("file_path", "filePath", "path", "absolute_path")


class ToolCall(NamedTuple):
    """A call as it is sent. Its input is an object, or free text for a tool that takes that."""

    id: str
    name: str
    input: Mapping[str, object] | str


class Reply(NamedTuple):
    """A reply before it is encoded in a protocol. `id` is the same for the same position in a conversation."""

    id: str
    model: str
    thinking: str
    text: str
    calls: tuple[ToolCall, ...]
    usage: Tokens
    length: bool


def fit(step: Step, asked: Asked, name: str) -> Reply:
    """Return the reply. `name` makes its ids unique."""
    calls = tuple(
        ToolCall(f"call_{name}_{number}", *_call(call, asked.tools)) for number, call in enumerate(step.calls)
    )
    return Reply(name, asked.model, step.thinking, step.text, calls, step.usage, step.stop == "length")


def smallest(schema: Mapping[str, object]) -> object:
    """Return a small value that a JSON schema allows. It need not be exact: it is for titles and classifications."""
    if choices := items(schema.get("enum")):
        return choices[0]
    if "const" in schema:
        return schema["const"]
    for union in ("anyOf", "oneOf"):
        if options := items(schema.get(union)):
            return smallest(record(options[0]))
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        properties = record(schema.get("properties"))
        return {text(key): smallest(record(properties, text(key))) for key in items(schema.get("required"))}
    return {"string": "scripted", "integer": 0, "number": 0, "boolean": False, "array": []}.get(text(kind))


Named = tuple[str, Mapping[str, object] | str]


def _call(call: Call, tools: Mapping[str, Mapping[str, object]]) -> Named:
    if call.tool is not None:
        custom = tools.get(call.tool) == CUSTOM
        return call.tool, "".join(map(text, call.input.values())) if custom else call.input
    if call.write is not None:
        return _write(call.write, tools)
    assert call.shell is not None
    return _shell(call.shell, tools)


def _shell(command: str, tools: Mapping[str, Mapping[str, object]]) -> Named:
    name = next((name for name in _SHELLS if name in tools), "Bash")
    if name not in tools and tools.get("exec") == CUSTOM:  # codex with some models: JavaScript that calls tools
        given = msgspec.json.encode({"cmd": command}).decode()
        return "exec", f"text((await tools.exec_command({given})).output)"
    properties = record(tools.get(name), "properties")
    key = "cmd" if "cmd" in properties and "command" not in properties else "command"
    words: object = ["bash", "-c", command] if record(properties, key).get("type") == "array" else command
    return name, _complete({key: words}, tools.get(name, {}))


def _write(file: File, tools: Mapping[str, Mapping[str, object]]) -> Named:
    name = next((name for name in _WRITERS if name in tools), None)
    if name is None:  # some agents offer only a shell, or patches in their own format
        target = shlex.quote(file.path)
        return _shell(f'mkdir -p "$(dirname {target})" && printf %s {shlex.quote(file.content)} > {target}', tools)
    properties = record(tools[name], "properties")
    path = next((key for key in _PATHS if key in properties), "path")
    return name, _complete({path: file.path, "content": file.content}, tools[name])


def _complete(given: dict[str, object], schema: Mapping[str, object]) -> Mapping[str, object]:
    """Return the input with everything that the tool requires, such as the `description` of some shells."""
    defaults = smallest(schema)
    return {**defaults, **given} if isinstance(defaults, dict) else given
