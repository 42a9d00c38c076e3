"""JSON-RPC 2.0, a message a line, as programs speak it on their stdin and stdout (jsonrpc.org/specification).

Our requests have texts for ids, and these are the keys under which they are told; so are the ids of the program's own
requests the keys of our answers.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from hiveyard.agents.shared.jsonl import JSON, decoded
from hiveyard.core.drivers import Line
from hiveyard.kit.shape import record, text

NO_METHOD = -32601
_LONGEST_ID = 200


class Said(NamedTuple):
    """One message of the program. A request has `method` and `id`, a notification `method`, an answer `id` and
    `result` or `error`. `id` is as it came, as JSON."""

    id: str
    method: str
    params: JSON
    result: JSON
    error: JSON | None


def said(line: bytes) -> Said | None:
    """The message of a line, or None for one that has none, or one with an id that nobody would give it."""
    message = decoded(line)
    if message is None or not ("method" in message or "id" in message):
        return None
    id = "" if message.get("id") is None else msgspec.json.encode(message["id"]).decode()
    if len(id) > _LONGEST_ID:
        return None
    return Said(
        id=id,
        method=text(message.get("method")),
        params=record(message.get("params")),
        result=record(message.get("result")),
        error=record(message["error"]) if message.get("error") is not None else None,
    )


def own(id: str) -> str:
    """The key of the request of ours that an answer belongs to."""
    try:
        return text(msgspec.json.decode(id))
    except msgspec.DecodeError:
        return ""


def request(key: str, method: str, params: JSON) -> Line:
    return _line(key, {"id": key, "method": method, "params": params})


def notify(key: str, method: str, params: JSON) -> Line:
    return _line(key, {"method": method, "params": params})


def reply(id: str, result: JSON) -> Line:
    """The answer to a request of the program."""
    return _line(f"reply-{id}", {"id": msgspec.Raw(id.encode()), "result": result})


def refuse(id: str, message: str, code: int = NO_METHOD) -> Line:
    """An error for an answer."""
    return _line(f"reply-{id}", {"id": msgspec.Raw(id.encode()), "error": {"code": code, "message": message}})


def _line(key: str, message: JSON) -> Line:
    return Line(key, msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n")
