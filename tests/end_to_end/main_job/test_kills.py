"""`kill -9` of the daemon at random moments of a run: nothing is lost, repeated or left over."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from aiodocker import Docker

from tests.end_to_end.main_job.conftest import Event, Opening, Yard
from tests.end_to_end.main_job.host import processes_of

pytestmark = pytest.mark.real

LINES = 60


class Host(NamedTuple):
    provider: str
    rounds: int
    seconds: float
    """Approximate duration of a run in seconds; kills come at random moments of it."""


HOSTS = [Host("bubblewrap", 4, 1.5), Host("docker", 2, 3.0), Host("qemu", 1, 7.0)]
STORM = [Host("bubblewrap", 20, 1.5), Host("docker", 6, 3.0), Host("qemu", 4, 7.0)]


@pytest.mark.parametrize(
    "host",
    [
        *(pytest.param(host, id=host.provider) for host in HOSTS),
        *(pytest.param(host, id=f"{host.provider}-storm", marks=pytest.mark.long("storms")) for host in STORM),
    ],
)
def test_kills_of_the_daemon_lose_nothing(
    host: Host, opening: Opening, repo: Path, request: pytest.FixtureRequest
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    command = f"for i in $(seq {LINES}); do echo line $i; sleep 0.02; done; echo x > x.txt"
    ids = []
    with opening(host.provider) as yard:
        for round in range(host.rounds):
            run = yard.start("run", str(repo), "-m", f"round {round}", "--command", command, "--json")
            for _ in range(moments.choice((1, 2, 2, 3))):
                time.sleep(moments.uniform(0.05, host.seconds))
                yard.kill_daemon()
            out, err = run.communicate(timeout=300)
            assert run.returncode == 0, f"seed {seed}, round {round}: {err}"
            report = json.loads(out)
            assert (report["status"], report["commits"]) == ("completed", 1)
            _check_events(yard, report["id"])
            assert yard("rm", report["id"]).returncode == 0
            ids.append(report["id"])
        _check_nothing_left(yard, host.provider)
        if host.provider == "docker":
            left = anyio.run(_containers, request.getfixturevalue("docker_socket"))
            assert [name for name in left if any(id in name for id in ids)] == []


def _check_events(yard: Yard, id: str) -> None:
    events = yard.events(id)
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    said = [line for event in events if event["body"]["type"] == "agent.output" for line in _lines(event)]
    assert said == [f"line {i}" for i in range(1, LINES + 1)]
    once = ["task.created", "task.assigned", "task.started", "turn.started", "turn.ended", "task.completed"]
    types = [event["body"]["type"] for event in events]
    assert [type for type in types if type in once] == once
    mirrored = (yard.sessions / id / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in mirrored] == numbers


def _lines(event: Event) -> Sequence[str]:
    lines: str = event["body"]["text"]
    return lines.splitlines()


def _check_nothing_left(yard: Yard, provider: str) -> None:
    """Check that there is no file, no process except the daemon's own, and no mount."""
    assert list(yard.sessions.iterdir()) == []
    assert list((yard.home / "run" / "doors").iterdir()) == []
    assert list((yard.home / "data" / "machines" / provider).glob("*hv-*")) == []
    assert set(processes_of(yard.home)) <= {yard.daemon_pid()}, processes_of(yard.home)
    assert str(yard.home) not in Path("/proc/self/mountinfo").read_text()


async def _containers(socket: Path) -> list[str]:
    async with Docker(url=f"unix://{socket}") as docker:
        return [name for found in await docker.containers.list(all=True) for name in found["Names"]]
