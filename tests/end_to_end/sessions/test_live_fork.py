"""A real agent in a real VM, forked in the middle of a turn while it waits for the scripted model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal

from hiveyard.testing.model import Recorded, ScriptedModel
from hiveyard.testing.script import Step, say, shell
from tests.end_to_end.main_job.conftest import Event, Opening, Speaking, Yard, docker_socket, opening, portal, speaking
from tests.engine.conftest import repo

__all__ = ["docker_socket", "opening", "portal", "repo", "speaking"]
pytestmark = pytest.mark.real

CHILDREN = 2
LONG = "A long thought. " * 20 + "It is thought."
SCRIPTS = {
    "think": [shell("echo before > before.txt"), Step(text=LONG, gate="thought")],
    "own": [shell("echo $(hostname) > own.txt"), say("I did my own.")],
}
PATIENCE = 900.0


def test_children_continue_the_turn_and_no_answer_is_repeated(
    opening: Opening, speaking: Speaking, portal: BlockingPortal, repo: Path
) -> None:
    with speaking([], scripts=SCRIPTS) as model, opening("qemu", model) as yard:
        done = yard("spawn", str(repo), "--agent", "claude", "--prompt", "[[script:think]] think", timeout=600)
        assert done.returncode == 0, done.stderr
        parent = done.stdout.split()[-1]
        until(lambda: len(asked(model, "think", 1)) == 1, yard, parent)

        forked = yard.json("fork", parent, "-n", str(CHILDREN), "-m", "[[script:own]] now your own")
        assert forked["live"], forked
        children = forked["children"]
        # Each child repeats, once, the request that was pending when it was created.
        until(lambda: len(asked(model, "think", 1)) == 1 + CHILDREN, yard, *children)
        assert not [event for event in turns(yard, parent) if event["body"]["type"] == "turn.ended"]
        portal.call(model.open, "thought")

        for child in children:
            both_ended(yard, child)
        until(lambda: ended(yard, parent) == ["succeeded"], yard, parent)

        for one in (parent, *children):
            said = [event["body"]["text"] for event in yard.events(one) if event["body"]["type"] == "agent.ended"]
            assert said == ([LONG] if one == parent else [LONG, "I did my own."])
        assert len(asked(model, "think", 0)) == 1
        assert len(asked(model, "think", 1)) == 1 + CHILDREN
        for request in asked(model, "own", 1):
            assert request.body.count(b"It is thought.") == 1, "the children know what was thought, once"
        # The parent pays for its two answers, a child for the repeated one and for its own two.
        assert answers(yard, parent) == 2
        assert [answers(yard, child) for child in children] == [3] * CHILDREN
        for child in children:
            files = yard("exec", child, "--", "cat", "before.txt", "own.txt").stdout
            assert files == f"before\nhv-{child}\n"
        assert yard("exec", parent, "--", "test", "-e", "own.txt").returncode == 1


def asked(model: ScriptedModel, script: str, step: int) -> list[Recorded]:
    """Return the requests to the model at one step of a script."""
    marker = f"[[script:{script}]]"
    return [one for one in model.requests if not one.side and one.step == step and marker in one.prompt]


def turns(yard: Yard, id: str) -> list[Event]:
    return [event for event in yard.events(id) if event["body"]["type"].startswith("turn.")]


def ended(yard: Yard, id: str) -> list[str]:
    return [event["body"]["outcome"] for event in turns(yard, id) if event["body"]["type"] == "turn.ended"]


def both_ended(yard: Yard, child: str) -> None:
    """Wait for the end of the turn that the child was created in, and of its own turn."""
    until(lambda: ended(yard, child) == ["succeeded"] * 2, yard, child)


def answers(yard: Yard, id: str) -> int:
    """Return how many answers of the script were counted for a session."""
    called = [event["body"] for event in yard.events(id) if event["body"]["type"] == "model.called"]
    return sum(body["usage"]["output_tokens"] == 50 for body in called)


def until(true: Callable[[], bool], yard: Yard, *ids: str) -> None:
    """Wait for a condition; fail if a turn of these sessions fails."""
    end = time.monotonic() + PATIENCE
    while not true():
        for id in ids:
            assert "failed" not in ended(yard, id), turns(yard, id)
            assert time.monotonic() < end, yard.events(id)[-3:]
        time.sleep(1)
