"""`kill -9` of the daemon at random moments of a run: nothing is lost, nothing is doubled, nothing is left."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Hv

ROUNDS = 20
LINES = 60


@pytest.mark.real
def test_twenty_kills_of_the_daemon_lose_nothing(hv: Hv, repo: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    command = f"for i in $(seq {LINES}); do echo line $i; sleep 0.02; done; echo x > x.txt"
    for round in range(ROUNDS):
        run = hv.start("run", str(repo), "-m", f"round {round}", "--command", command, "--json")
        for _ in range(moments.choice((1, 1, 2, 3))):
            time.sleep(moments.uniform(0.05, 1.5))
            hv.kill_daemon()
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, f"seed {seed}, round {round}: {err}"
        report = json.loads(out)
        assert (report["status"], report["commits"]) == ("completed", 1)
        _check_events(hv, report["id"])
        assert hv("rm", report["id"]).returncode == 0
    assert list((hv.home / "data" / "sessions").iterdir()) == []
    assert list((hv.home / "run" / "doors").iterdir()) == []
    assert list((hv.home / "data" / "machines" / "bubblewrap").glob("hv-*")) == []


def _check_events(hv: Hv, id: str) -> None:
    events = hv.events(id)
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    said = [line for event in events if event["body"]["type"] == "agent.output" for line in _lines(event)]
    assert said == [f"line {i}" for i in range(1, LINES + 1)]
    once = ["task.created", "task.assigned", "task.started", "turn.started", "turn.ended", "task.completed"]
    types = [event["body"]["type"] for event in events]
    assert [type for type in types if type in once] == once
    mirrored = (hv.home / "data" / "sessions" / id / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in mirrored] == numbers


def _lines(event: dict[str, dict[str, str]]) -> list[str]:
    return event["body"]["text"].splitlines()
