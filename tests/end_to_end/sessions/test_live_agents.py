"""Live sessions with the real agent programs: three turns, a permission, an interrupt, another model, a resume."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hiveyard.testing.script import Script, Step, say, shell
from tests.end_to_end.main_job.conftest import Opening, Speaking, Yard, docker_socket, opening, portal, speaking
from tests.end_to_end.main_job.test_agents import OPENAI_KEY
from tests.engine.conftest import repo

__all__ = ["docker_socket", "opening", "portal", "repo", "speaking"]
pytestmark = pytest.mark.real

SCRIPTS: dict[str, Script] = {
    "shell": [shell("echo three > c.txt"), say("The third is there.")],
    "slow": [Step(text="Slow " * 200, chunk_delay=0.5), say("never said")],
    "next": [say("I remember the third.")],
}
MODELS = {
    "claude": "claude-haiku-4-5",
    "opencode": "anthropic/claude-haiku-4-5",
    "codex": "gpt-5.5",
    "goose": "claude-haiku-4-5",
}
IMAGES = {"codex": "codex", "goose": "goose"}
STEERABLE = ("claude", "codex")
PATIENCE = 900.0
KILLS, SEEDS = 5, 5
"""Kills of the daemon in a session, and sessions of each program: 100 kills in all."""
GOING_ON = (
    "claude",
    "goose",
    *(pytest.param(name, marks=pytest.mark.long("agents")) for name in ("opencode", "codex")),
)
"""goose is the one whose conversation does not go on."""
PLACES = ("docker", pytest.param("qemu", marks=pytest.mark.long("agents")))


@pytest.mark.parametrize("provider", PLACES)
@pytest.mark.parametrize("agent", MODELS)
def test_a_live_session(agent: str, provider: str, opening: Opening, speaking: Speaking, repo: Path) -> None:
    with speaking([], scripts=SCRIPTS) as model, opening(provider, model, OPENAI_API_KEY=OPENAI_KEY) as yard:
        image = IMAGES.get(agent, "default")
        words = ("--agent", agent, "--ask", "--image", image, "-m", "[[script:shell]] make the third")
        spawned = yard("spawn", "--repo", str(repo), *words, timeout=PATIENCE)
        assert spawned.returncode == 0, spawned.stderr
        id = spawned.stdout.splitlines()[-1]
        assert yard.json("show", id)["mode"] == "live"

        # The first turn asks for permission, and the answer counts once.
        ask = waiting(yard, id)
        assert "c.txt" in ask["message"]
        assert {True, False} <= {option["allow"] for option in ask["options"]} or agent == "codex"
        assert yard("answer", ask["id"][:6], "allow").returncode == 0
        assert "it was answered with allow" in yard("answer", ask["id"], "deny").stderr
        assert outcome(yard, id, 1) == "succeeded"
        assert yard("exec", "-T", id, "--", "cat", "c.txt").stdout == "three\n"

        # An interrupt, and the conversation goes on.
        assert yard("send", id, "[[script:slow]] talk").returncode == 0
        until(lambda: b"[[script:slow]]" in model.asked[-1].body)
        if agent in STEERABLE:
            assert yard("send", id, "--now", "[[script:slow]] and be brief").returncode == 0
        else:
            assert "takes no text in the middle" in yard("send", id, "--now", "be brief").stderr
        assert yard("interrupt", id).returncode == 0
        assert outcome(yard, id, 2) == "cancelled"

        # Another model.
        chosen = yard("model", id, MODELS[agent])
        assert chosen.returncode == 0, chosen.stderr
        told = yard("send", id, "[[script:next]] which was it?", "--wait", timeout=PATIENCE)
        assert "I remember the third." in told.stdout, told.stderr
        assert model.asked[-1].model == MODELS[agent].rpartition("/")[2]
        assert b"make the third" in model.asked[-1].body, "it is one conversation"

        # A new machine continues it.
        assert yard("stop", id, timeout=PATIENCE).returncode == 0
        assert yard("resume", id, timeout=PATIENCE).returncode == 0
        told = yard("send", id, "[[script:next]] and now?", "--wait", timeout=PATIENCE)
        assert "I remember the third." in told.stdout, told.stderr
        assert b"make the third" in model.asked[-1].body
        assert model.asked[-1].model == MODELS[agent].rpartition("/")[2]
        assert yard("stop", id, timeout=PATIENCE).returncode == 0
        assert "c.txt" in yard("diff", id).stdout


@pytest.mark.parametrize("provider", PLACES)
@pytest.mark.parametrize("agent", GOING_ON)
def test_a_task_that_is_over_goes_on(
    agent: str, provider: str, opening: Opening, speaking: Speaking, repo: Path
) -> None:
    with speaking([], scripts=SCRIPTS) as model, opening(provider, model, OPENAI_API_KEY=OPENAI_KEY) as yard:
        words = ("--agent", agent, "--image", IMAGES.get(agent, "default"))
        status, report = yard.run(repo, "-m", "[[script:shell]] make the third", *words)
        assert (status, report["status"]) == (0, "completed"), report
        told = yard("send", report["slug"], "[[script:next]] which was it?", "--wait", timeout=PATIENCE)
        assert "I remember the third." in told.stdout, told.stderr
        if agent == "goose":
            assert "a new conversation begins" in yard("logs", report["id"]).stdout
        else:
            assert b"make the third" in model.asked[-1].body, "it is one conversation"
        assert yard("exec", "-T", report["id"], "--", "cat", "c.txt").stdout == "three\n"
        assert [one["id"] for one in yard.json("list")] == [report["id"]]
        assert yard("stop", report["id"], timeout=PATIENCE).returncode == 0


@pytest.mark.long("agents")
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("agent", MODELS)
def test_kills_of_the_daemon_lose_no_turn_and_no_answer(
    agent: str, seed: int, opening: Opening, speaking: Speaking, repo: Path
) -> None:
    chance = random.Random(seed)
    texts = ["[[script:shell]] make the third", "[[script:next]] which was it?", "[[script:next]] and now?"]
    with speaking([], scripts=SCRIPTS) as model, opening("docker", model, OPENAI_API_KEY=OPENAI_KEY) as yard:
        words = ("--agent", agent, "--ask", "--image", IMAGES.get(agent, "default"), "-m", texts[0])
        spawned = yard("spawn", "--repo", str(repo), *words, timeout=PATIENCE)
        assert spawned.returncode == 0, spawned.stderr
        id = spawned.stdout.splitlines()[-1]
        for text in texts[1:]:
            assert yard("send", id, text).returncode == 0
        for _ in range(2):
            killed_after(yard, chance.uniform(0.0, 4.0))
        ask = waiting(yard, id)
        assert yard("answer", ask["id"], "allow").returncode == 0
        for _ in range(KILLS - 2):
            killed_after(yard, chance.uniform(0.0, 3.0))
        assert outcome(yard, id, len(texts)) == "succeeded"
        ends = [(one["turn"], one["body"]["outcome"]) for one in all_events(yard, id, "turn.ended")]
        assert ends == [(1, "succeeded"), (2, "succeeded"), (3, "succeeded")]
        assert [one["body"]["text"] for one in all_events(yard, id, "agent.prompted")] == texts
        assert len(all_events(yard, id, "ask.answered")) == 1
        assert len(all_events(yard, id, "live.started")) == 1
        assert yard("exec", "-T", id, "--", "cat", "c.txt").stdout == "three\n"
        assert yard("stop", id, timeout=PATIENCE).returncode == 0


def killed_after(yard: Yard, seconds: float) -> None:
    """Kill the daemon after some seconds, and start the next one."""
    time.sleep(seconds)
    yard.kill_daemon()
    assert yard("ps").returncode == 0


def all_events(yard: Yard, id: str, type: str) -> list[dict[str, Any]]:
    events = map(json.loads, yard("events", id).stdout.splitlines())
    return [event for event in events if event["body"]["type"] == type]


def waiting(yard: Yard, id: str) -> dict[str, Any]:
    """Return the question of a session, once there is one."""
    event_of(yard, id, lambda event: bool(event["body"]["type"] == "agent.asked"))
    found = yard.json("inbox")
    assert isinstance(found, list)
    [ask] = found
    return dict(ask)


def outcome(yard: Yard, id: str, turn: int) -> str:
    """Return how a turn ended, once it has."""
    ended = event_of(yard, id, lambda event: event["turn"] == turn and event["body"]["type"] == "turn.ended")
    return str(ended["body"]["outcome"])


def event_of(yard: Yard, id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the first event for which something is true, once there is one."""
    with yard.start("events", "-f", id) as follower:
        assert follower.stdout is not None
        try:
            return next(event for line in follower.stdout if true(event := json.loads(line)))
        finally:
            follower.kill()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
