"""The daemon is killed while members work together: the same end, no message lost or taken twice."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hiveyard.api.client import ApiError, Client
from hiveyard.core.errors import DaemonUnreachable
from tests.end_to_end.sessions.conftest import Stage, own_stage, repo
from tests.support.live_puppet import NAME

__all__ = ["own_stage", "repo"]
KILLS = 5
STORM = 20
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.long("storms")) for seed in range(1, 1 + STORM)))
PATIENCE = 300.0


class Operator:
    """The person: each wish is repeated until a daemon has taken it."""

    def __init__(self, stage: Stage) -> None:
        self._client = Client(stage.home / "run" / "api.sock")

    def call(self, method: str, path: str, body: object = None, **query: object) -> Any:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self._client.call(method, path, body, **query)
            except (DaemonUnreachable, ApiError) as error:
                assert isinstance(error, DaemonUnreachable) and time.monotonic() < until, error
                time.sleep(0.05)

    def wait_for(self, path: str, true: Callable[[Any], bool], **query: object) -> Any:
        until = time.monotonic() + PATIENCE
        while not true(found := self.call("GET", path, **query)):
            assert time.monotonic() < until, found
            time.sleep(0.1)
        return found

    def events(self) -> list[dict[str, Any]]:
        return list(self._client.stream("GET", "/v1/events"))


@contextmanager
def kills(stage: Stage, seed: int) -> Iterator[None]:
    """Kill the daemon at moments that follow from the seed, and start the next one."""
    chance, over = random.Random(seed), threading.Event()

    def run() -> None:
        for _ in range(KILLS):
            if over.wait(chance.uniform(0.5, 4.0)):
                return
            os.kill(stage.daemons[-1].pid, signal.SIGKILL)
            stage.daemons[-1].wait()
            stage.wake()

    killer = threading.Thread(target=run)
    killer.start()
    try:
        yield
    finally:
        killer.join()
        over.set()


def tool(name: str, **arguments: object) -> str:
    return f"tool {name} {json.dumps(arguments)}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hive_whose_daemon_is_killed_comes_to_the_same_end(own_stage: Stage, repo: Path, seed: int) -> None:
    operator = Operator(own_stage)
    for name, role in (("max", "manager"), ("ada", "member"), ("bob", "member")):
        done = own_stage("hive", "add", name, str(repo), "--agent", NAME, "--role", role)
        assert done.returncode == 0, done.stderr
    report = tool("send", to=["operator"], text="bob is done")
    order = tool("send", to=["bob"], text=report)
    plan = [
        tool("ask", question="shall ada begin?", options=["yes", "no"]),
        tool("remind", text="look after ada", **{"in": 3}),
        tool("send", to=["ada"], text=order),
    ]
    with kills(own_stage, seed):
        sent = operator.call("POST", "/v1/hive/messages", {"to": ["max"], "text": "\n".join(plan)})
        [ask] = operator.wait_for("/v1/asks", bool)
        operator.call("POST", f"/v1/asks/{ask['id']}/answer", {"answer": "yes"})
        operator.wait_for("/v1/hive/mail", lambda mail: any(one["sender"] == "bob" for one in mail))
        operator.wait_for("/v1/hive/mail", lambda mail: {"answer", "reminder"} <= kinds_delivered(mail), of="max")
    operator.wait_for("/v1/hive/members", lambda members: all(one["state"] == "idle" for one in members))

    events = operator.events()
    messages = [event["body"] for event in events if event["body"]["type"] == "message.sent"]
    told = Counter((one["sender"], one["to"], one.get("kind", "message")) for one in messages)
    expected = {
        ("operator", "max", "message"): 1,
        ("operator", "max", "answer"): 1,
        ("hive", "max", "reminder"): 1,
        ("max", "ada", "message"): 1,
        ("ada", "bob", "message"): 1,
        ("bob", "operator", "message"): 1,
    }
    assert {key: count for key, count in told.items() if key[0] != "operator"} == {
        key: count for key, count in expected.items() if key[0] != "operator"
    }
    prompts = [event["body"]["text"] for event in events if event["body"]["type"] == "agent.prompted"]
    for one in messages:
        if one["to"] != "operator":
            assert sum(f" {one['message']} from " in prompt for prompt in prompts) == 1, one
    delivered = Counter(event["body"]["message"] for event in events if event["body"]["type"] == "message.delivered")
    assert set(delivered.values()) == {1}
    assert sent[0]["id"] in delivered
    assert len([event for event in events if event["body"]["type"] == "ask.answered"]) == 1
    assert [event["body"]["outcome"] for event in events if event["body"]["type"] == "turn.ended"].count("failed") == 0


def kinds_delivered(mail: list[dict[str, Any]]) -> set[str]:
    return {one["kind"] for one in mail if one["state"] == "delivered"}
