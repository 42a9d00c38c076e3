"""A small agent that speaks the Agent Client Protocol: it repeats its prompts, and asks before it says a secret."""

import json
import sys
import uuid
from typing import Any

prompts: list[str] = []
servers: list[Any] = []


def put(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def say(session: str, text: str) -> None:
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}
    put(method="session/update", params={"sessionId": session, "update": update})


def allowed(session: str) -> bool:
    kinds = {"yes": "allow_once", "no": "reject_once"}
    options = [{"optionId": name, "name": name, "kind": kind} for name, kind in kinds.items()]
    call = {"toolCallId": "t1", "title": "Tell it", "kind": "other", "status": "pending"}
    asked = {"sessionId": session, "toolCall": call, "options": options}
    put(id=100, method="session/request_permission", params=asked)
    return bool(json.loads(sys.stdin.readline())["result"]["outcome"].get("optionId") == "yes")


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
    if method == "session/new":
        servers.extend(params["mcpServers"])
        return {"sessionId": uuid.uuid4().hex}
    if method == "session/prompt":
        text = params["prompt"][0]["text"]
        if text == "secret" and not allowed(params["sessionId"]):
            text = "nothing"
        if text == "servers":
            text = json.dumps(servers)[::-1]
        prompts.append(text)
        say(params["sessionId"], f"you said: {', '.join(prompts)}")
        return {"stopReason": "end_turn"}
    return {}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        put(id=request["id"], result=answer(request["method"], request.get("params", {})))
