"""JSON-RPC 2.0 with one message per line, as programs speak it on stdin and stdout (jsonrpc.org/specification).

The ids of our requests are texts, and are also the keys under which they are sent. The ids of the program's requests
are in the keys of our answers."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from hiveyard.agents.shared.jsonl import JSON, decoded
from hiveyard.core.drivers import Line
from hiveyard.kit.shape import record, text

NO_METHOD = -32601
_MAX_ID = 200


class Message(NamedTuple):
    """A message of the program.

    A request has `method` and `id`, a notification `method`, an answer `id` and `result` or `error`. `id` is the
    original JSON."""

    id: str
    method: str
    params: JSON
    result: JSON
    error: JSON | None


def parse(line: bytes) -> Message | None:
    """Return the message of a line, or None if there is none or its id is too long."""
    message = decoded(line)
    if message is None or not ("method" in message or "id" in message):
        return None
    id = "" if message.get("id") is None else msgspec.json.encode(message["id"]).decode()
    if len(id) > _MAX_ID:
        return None
    return Message(
        id=id,
        method=text(message.get("method")),
        params=record(message.get("params")),
        result=record(message.get("result")),
        error=record(message["error"]) if message.get("error") is not None else None,
    )


def own(id: str) -> str:
    """Return the key of our request that an answer belongs to."""
    try:
        return text(msgspec.json.decode(id))
    except msgspec.DecodeError:
        return ""


def request(key: str, method: str, params: JSON) -> Line:
    return _line(key, {"id": key, "method": method, "params": params})


def notify(key: str, method: str, params: JSON) -> Line:
    return _line(key, {"method": method, "params": params})


def reply(id: str, result: JSON) -> Line:
    """Return the answer to a request of the program."""
    return _line(f"reply-{id}", {"id": msgspec.Raw(id.encode()), "result": result})


def refuse(id: str, message: str, code: int = NO_METHOD) -> Line:
    """Return an error as the answer to a request of the program."""
    return _line(f"reply-{id}", {"id": msgspec.Raw(id.encode()), "error": {"code": code, "message": message}})


def _line(key: str, message: JSON) -> Line:
    return Line(key, msgspec.json.encode({"jsonrpc": "2.0", **message}) + b"\n")
