"""The puppet's own program: it runs in a guest on a terminal, and has nothing but Python.

    python3 -c PROGRAM STATE-DIRECTORY CONVERSATION

What is typed, and the files named in `inbox/pipe`, are prompts. See puppet.py for what it does with them.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

state, conversation = Path(sys.argv[1]), sys.argv[2]
memory, pipe = state / "memory.json", state / "pipe"
kept = json.loads(memory.read_text()) if conversation and memory.exists() else []
conversation = conversation or uuid.uuid4().hex
feed = (state / "feed.jsonl").open("ab", buffering=0)
prompts: "queue.Queue[str]" = queue.Queue()
interrupted = threading.Event()


def tell(kind: str, **more: object) -> None:
    feed.write(json.dumps({"type": f"agent.{kind}", **more}).encode() + b"\n")


def typed() -> None:
    for line in sys.stdin:
        prompts.put(line.rstrip("\n"))


def told() -> None:
    with pipe.open() as paths:
        for path in paths:
            prompts.put(Path(path.rstrip("\n")).read_text())


def ended(text: str, *, is_error: bool = False, reason: str = "") -> None:
    print(text, flush=True)
    tell("text", text=text)
    tell("ended", is_error=is_error, text=text, reason=reason)


def use_tool(line: str) -> None:
    tell("tool_called", call="1", tool="sh", summary=f"sh: {line}")
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    tell("tool_returned", call="1", output=done.stdout + done.stderr, is_error=done.returncode != 0)


def turn(prompt: str) -> None:
    interrupted.clear()
    print(f"<{prompt}>", flush=True)
    tell("prompted", text=prompt)
    word, _, rest = prompt.partition(" ")
    if word == "remember":
        kept.append(rest)
        memory.write_text(json.dumps(kept))
    elif word == "run":
        use_tool(rest)
    elif word == "ask":
        tell("asked", message="may I?")
    elif word == "die":
        os._exit(int(rest))
    if word in ("wait", "ask"):
        interrupted.wait(3600)
        ended("stopped", is_error=True, reason="interrupted")
    elif word == "fail":
        ended(rest, is_error=True)
    else:
        ended("kept: " + " ".join(kept) if word == "recall" else f"done: {prompt}")


if not pipe.exists():
    os.mkfifo(pipe)
held = os.open(pipe, os.O_RDWR)  # so that it never ends
signal.signal(signal.SIGUSR1, lambda number, frame: interrupted.set())
signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
tell("started", conversation=conversation, model="strings", version="1")
print(f"puppet {conversation} {'goes on' if kept else 'begins'}", flush=True)
for thread in (typed, told):
    threading.Thread(target=thread, daemon=True).start()
(state / "pid").write_text(str(os.getpid()))
while True:
    try:
        turn(prompts.get(timeout=0.2))  # signals are handled between the waits
    except queue.Empty:
        continue
