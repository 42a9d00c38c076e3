"""The program of the live puppet, in the guest: JSON lines in, events as JSON lines out. It knows only Python."""

import json
import os
import sys
import uuid

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


talks = json.loads(os.environ.get("PUPPET_TALKS", "{}"))
tell("started", conversation=conversation, model=model, version="1")
while True:
    prompt = sys.stdin.read() if once else heard("prompt")[1]
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
