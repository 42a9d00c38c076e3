"""The conversation in a request to a model, in one form for the three protocols.

The number of the next reply is computed from the request: it counts the replies after the last prompt. So the server
keeps no state of conversations, and resumed, parallel and restarted ones work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from hiveyard.kit.shape import items, record, text

Protocol = Literal["anthropic", "chat", "responses"]
Turn = tuple[Literal["prompt", "reply", "other"], str]
CUSTOM: Mapping[str, object] = {"type": "custom"}


class Asked(NamedTuple):
    """A request to a model. `step` is the number of the requested reply, counted from 0 at `prompt`.

    `tools` are the names of the offered tools with the schemas of their input. `schema` is set if the answer must be
    JSON of that schema."""

    protocol: Protocol
    model: str
    prompt: str
    step: int
    tools: Mapping[str, Mapping[str, object]]
    stream: bool
    schema: Mapping[str, object] | None


def read(protocol: Protocol, body: object) -> Asked:
    """Parse a request's JSON body. Any value is accepted."""
    asked = record(body)
    turns = list(_TURNS[protocol](asked))
    prompt, step = _place(turns)
    return Asked(
        protocol=protocol,
        model=text(asked.get("model")) or "scripted",
        prompt=prompt,
        step=step,
        tools=dict(_tools(asked)),
        stream=asked.get("stream") is True,
        schema=_schema(asked),
    )


def _place(turns: Sequence[Turn]) -> tuple[str, int]:
    """Return the last prompt and the number of replies after it.

    Adjacent parts of one reply count once, and so do parts between which goose puts the answers to their own calls."""
    last = max((at for at, (kind, _) in enumerate(turns) if kind == "prompt"), default=-1)
    replies, seen, before = 0, set[str](), ""
    for kind, name in turns[last + 1 :]:
        if kind == "reply" and before != "reply" and name not in seen:
            replies += 1
        if kind == "reply":
            seen |= {name} - {""}
        before = kind
    return (turns[last][1] if last >= 0 else ""), replies


def _anthropic(asked: Mapping[str, object]) -> Iterator[Turn]:
    for message in items(asked.get("messages")):
        content = record(message).get("content")
        if record(message).get("role") == "assistant":
            yield "reply", _reply(text(record(block).get("id")) for block in items(content))
        elif record(message).get("role") != "user":
            yield "other", ""  # Claude Code describes its environment in a `system` message after the prompt
        else:
            # If the turn was interrupted, the next prompt follows a tool's result.
            yield _prompt(_texts(content))


def _chat(asked: Mapping[str, object]) -> Iterator[Turn]:
    for message in items(asked.get("messages")):
        role = record(message).get("role")
        if role == "assistant":
            yield "reply", _reply(text(record(call).get("id")) for call in items(record(message).get("tool_calls")))
        elif role == "user":
            yield _prompt(_texts(record(message).get("content")))
        else:
            yield "other", ""


def _responses(asked: Mapping[str, object]) -> Iterator[Turn]:
    if isinstance(asked.get("input"), str):
        yield _prompt([text(asked.get("input"))])
        return
    for item in items(asked.get("input")):
        kind, role = record(item).get("type", "message"), record(item).get("role")
        if role == "assistant" or kind in ("function_call", "reasoning", "custom_tool_call"):
            yield "reply", _reply([text(record(item).get("call_id"))])
        elif kind == "message" and role == "user":
            yield _prompt(_texts(record(item).get("content")))
        else:
            yield "other", ""


_TURNS = {"anthropic": _anthropic, "chat": _chat, "responses": _responses}


def _reply(calls: Iterable[str]) -> str:
    """Return the name of the reply that made these calls, if the server made it (see reply.fit)."""
    return next((found.group(1) for call in calls if (found := _CALL.match(call))), "")


_CALL = re.compile(r"(?:call|toolu)_([0-9a-f]{8}x\d+)_\d+\Z")


def _texts(content: object) -> Iterable[str]:
    return [text(content)] if isinstance(content, str) else [text(record(part).get("text")) for part in items(content)]


_REMINDERS = ("<system-reminder>", "[Request interrupted by user")


def _prompt(texts: Iterable[str]) -> Turn:
    # Claude Code puts its own reminders between the user's texts. They are not part of the prompt.
    prompt = "\n".join(part for part in texts if part and not part.lstrip().startswith(_REMINDERS))
    return ("prompt", prompt) if prompt else ("other", "")


def _tools(asked: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield the offered tools. The schema of a tool that takes free text is CUSTOM."""
    for offered in _offered(asked):
        tool = {**record(offered), **record(offered, "function")}
        if name := text(tool.get("name")):
            yield (
                name,
                CUSTOM if tool.get("type") == "custom" else record(tool.get("input_schema") or tool.get("parameters")),
            )


def _offered(asked: Mapping[str, object]) -> Iterator[object]:
    """Yield the tools of a request. With some models codex puts them into the conversation, in a namespace."""
    yield from items(asked.get("tools"))
    for item in map(record, items(asked.get("input"))):
        if item.get("type") == "additional_tools":
            for space in map(record, items(item.get("tools"))):
                yield from items(space.get("tools"))


def _schema(asked: Mapping[str, object]) -> Mapping[str, object] | None:
    for path in (("output_config", "format"), ("output_format",), ("text", "format"), ("response_format",)):
        form = record(asked, *path)
        if form.get("type") == "json_schema":
            return record(form.get("schema")) or record(form, "json_schema", "schema")
    return None
