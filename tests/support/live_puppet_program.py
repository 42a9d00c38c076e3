"""The program of the live puppet, in the guest: JSON lines in, events as JSON lines out. It knows only Python."""

import http.client
import json
import os
import re
import sys
import time
import urllib.request
import uuid
from typing import Any

state, conversation, model, *once = sys.argv[1:]
conversation = conversation or uuid.uuid4().hex
os.makedirs(state, exist_ok=True)
kept = os.path.join(state, f"puppet-{conversation}")


def tell(kind: str, **fields: object) -> None:
    print(json.dumps({"type": f"agent.{kind}", **fields}), flush=True)


def end(text: str = "", **fields: object) -> None:
    tell("ended", is_error=bool(fields), text=text, **fields)


def heard(*kinds: str) -> tuple[str, str]:
    """Return the next message of one of these kinds."""
    for line in sys.stdin:
        message = json.loads(line)
        choose(message)
        for kind in kinds:
            if kind in message:
                return kind, message[kind]
    sys.exit(0)


def choose(message: dict[str, str]) -> None:
    global model
    model = message.get("model", model)


def remember(word: str) -> None:
    with open(kept, "a") as file:
        file.write(word + "\n")
    end(f"kept {word}")


def recall(rest: str) -> None:
    words: list[str] = []
    if os.path.exists(kept):
        with open(kept) as file:
            words = file.read().split()
    end("kept: " + " ".join(words))


def say(rest: str) -> None:
    count, size = map(int, rest.split())
    for number in range(count):
        tell("text", text=f"thing {number} ".ljust(size, "."))
    end(f"said {rest}")


def wait(rest: str) -> None:
    tell("tool_called", call="w", tool="wait", summary="wait")
    while True:
        kind, text = heard("interrupt", "steer")
        if kind == "interrupt":
            end(reason="interrupted")
            return
        tell("text", text=f"added: {text}")


def ask(rest: str) -> None:
    options = [
        {"id": "once", "name": "allow once", "allow": True},
        {"id": "always", "name": "allow always", "allow": True},
        {"id": "never", "name": "never", "allow": False},
    ]
    tell("asked", message="may it?", request=uuid.uuid4().hex, tool="Touch", input='{"path":"x"}', options=options)
    kind, text = heard("answer", "interrupt")
    if kind == "answer":
        end(f"answered: {text}")
    else:
        end(reason="interrupted")


def answered(asked: urllib.request.Request) -> dict[str, Any]:
    """Return the result of a call, which is repeated while the daemon is away."""
    while True:
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return dict(json.load(answer)["result"])
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)


def tool(call: str, **known: str) -> None:
    """Call a tool of the hive at the session's door: `NAME {"an": "argument"}`, in which $sender is known."""
    for word, value in known.items():
        call = call.replace(f"${word}", value)
    name, _, arguments = call.partition(" ")
    params = {"name": name, "arguments": json.loads(arguments or "{}")}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    headers["authorization"] = "Bearer " + os.environ["PUPPET_KEY"]
    asked = urllib.request.Request(os.environ["PUPPET_DOOR"] + "/mcp", body, headers)
    result = answered(asked)
    tell("text", text=("error: " if result["isError"] else "") + result["content"][0]["text"])


def mail(prompt: str) -> str:
    """Do what the messages of a prompt say, line by line; return the last line, if it is a verb of the puppet."""
    verb = ""
    for found in re.finditer(r"--- (\w+) (\w+) (\w+) from (\S+)([^\n]*)\n(.*?)\n--- \1 end of \3", prompt, re.DOTALL):
        ask = re.search(r"about question (\w+)", found[5])
        for line in found[6].splitlines():
            if line.startswith("tool "):
                tool(line[5:], sender=found[4], message=found[3], ask=ask[1] if ask else "")
            else:
                verb = line
    return verb


talks = json.loads(os.environ.get("PUPPET_TALKS", "{}"))
tell("started", conversation=conversation, model=model, version="1")
while True:
    prompt = sys.stdin.read() if once else heard("prompt")[1]
    if prompt.startswith("You have "):
        prompt = mail(prompt)
    if prompt in talks:
        prompt = "tell " + json.dumps(talks[prompt])
    verb, _, rest = prompt.partition(" ")
    if verb == "die":
        sys.exit(int(rest))
    elif verb == "fail":
        end(rest, reason="failed")
    elif verb == "model":
        end(f"model: {model}")
    elif verb == "given":
        end(f"given: {os.environ.get(rest, 'nothing')[::-1]}")
    elif verb == "tell":
        for event in json.loads(rest):
            tell(event.pop("kind"), **event)
        end("told")
    elif verb in ("remember", "recall", "say", "wait", "ask"):
        globals()[verb](rest)
    else:
        end(f"did: {prompt}")
    if once:
        break
