"""The daemon is killed while a live session works: nothing is lost, and nothing is told or recorded twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.sessions.conftest import Stage
from tests.support.live_puppet import NAME

TEXTS = 30
STORM = 24
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.long("storms")) for seed in range(1, 1 + STORM)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_daemon_loses_no_prompt_no_answer_and_no_event(stage: Stage, repo: Path, seed: int) -> None:
    chance = random.Random(seed)
    id = stage.spawn(repo, "--agent", NAME, "--ask", "-m", "remember w1")
    assert sent(stage, id, "ask") == 2
    assert sent(stage, id, f"say {TEXTS} 3000") == 3
    assert sent(stage, id, "wait") == 4
    assert sent(stage, id, "remember w5") == 5
    assert sent(stage, id, "recall") == 6
    killed_after(stage, chance.uniform(0.0, 0.3))
    stage.until(id, lambda body: body["type"] == "agent.asked")
    [ask] = stage.json("inbox")
    answering = stage.start("answer", ask["id"], "never")
    killed_after(stage, chance.uniform(0.0, 0.6))
    answering.kill()
    answering.communicate()
    stage("answer", ask["id"], "never")  # it was answered already, or is now
    killed_after(stage, chance.uniform(0.0, 0.4))
    stage.until(id, lambda body: body.get("summary") == "wait")
    interrupting = stage.start("interrupt", id)
    killed_after(stage, chance.uniform(0.0, 0.6))
    interrupting.kill()
    interrupting.communicate()
    stage("interrupt", id)
    stage.until(id, lambda body: body["type"] == "agent.ended" and body.get("text", "").startswith("kept: "))

    events = stage.events(id)
    assert prompts(events) == ["remember w1", "ask", f"say {TEXTS} 3000", "wait", "remember w5", "recall"]
    ended = [event["body"] for event in events if event["body"]["type"] == "agent.ended"]
    assert [body.get("text") or body["reason"] for body in ended] == [
        "kept w1",
        "answered: never",
        f"said {TEXTS} 3000",
        "interrupted",
        "kept w5",
        "kept: w1 w5",
    ]
    said = [event["body"]["text"].split()[1] for event in events if event["body"]["type"] == "agent.text"]
    assert said == [str(number) for number in range(TEXTS)]
    turns = [event["turn"] for event in events if event["body"]["type"] == "turn.ended"]
    assert turns == [1, 2, 3, 4, 5, 6]
    assert len([event for event in events if event["body"]["type"] == "ask.answered"]) == 1
    assert len([event for event in events if event["body"]["type"] == "live.started"]) == 1


def sent(stage: Stage, id: str, prompt: str) -> int:
    done = stage("send", id, prompt)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


def killed_after(stage: Stage, seconds: float) -> None:
    """Kill the daemon after some seconds, and start the next one."""
    time.sleep(seconds)
    pid = stage.daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    stage.wake()


def prompts(events: list[dict[str, Any]]) -> list[str]:
    return [event["body"]["text"] for event in events if event["body"]["type"] == "agent.prompted"]
