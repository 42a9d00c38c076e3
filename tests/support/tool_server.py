"""A tool server (MCP on stdin and stdout) for tests: `lucky` says a number, `secret` is for tests of limits.

argv[1] is the number. The answer has `TOOL_WORD` of the environment, reversed: the word itself is never said."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_TOOLS = [
    {"name": name, "description": f"Say the {name} number.", "inputSchema": {"type": "object", "properties": {}}}
    for name in ("lucky", "secret")
]


def _answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        about = {"name": "numbers", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": _TOOLS}
    if method == "tools/call":
        said = f"the {params['name']} number is {sys.argv[1]}, {os.environ.get('TOOL_WORD', 'none')[::-1]}"
        return {"content": [{"type": "text", "text": said}]}
    return {} if method == "ping" else None


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        result = _answer(message["method"], message.get("params") or {})
        error = {"error": {"code": -32601, "message": "no such method"}}
        print(
            json.dumps(
                {"jsonrpc": "2.0", "id": message["id"], **({"result": result} if result is not None else error)}
            ),
            flush=True,
        )
