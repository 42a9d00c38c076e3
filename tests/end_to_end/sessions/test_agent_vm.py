"""The whole life of a session, as Agent VM tests its own: real opencode, real machines; only the model is scripted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from hiveyard.testing.script import say, shell
from tests.end_to_end.main_job.conftest import Opening, Speaking, Yard, docker_socket, opening, portal, speaking
from tests.engine.conftest import repo

__all__ = ["docker_socket", "opening", "portal", "repo", "speaking"]
pytestmark = pytest.mark.real

SCRIPTS = {
    "first": [shell("echo three > c.txt"), say("The third is there.")],
    "more": [say("I remember the third.")],
}
EIGHT = 8
MEMORY = {"docker": "1024", "qemu": "2048"}
PATIENCE = 3600.0

T = TypeVar("T")


def spawned(yard: Yard, repo: Path, *words: str) -> str:
    done = yard("spawn", "--repo", str(repo), "--agent", "opencode", *words, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def by_ssh(yard: Yard, id: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the host's own ssh and the configuration of `hv ssh-config`."""
    config = yard.home / f"ssh-{id}"
    config.write_text(yard("ssh-config", id).stdout)
    host = next(line.split()[1] for line in config.read_text().splitlines() if line.startswith("Host "))
    return subprocess.run(
        ["ssh", "-F", str(config), host, command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("provider", ["docker", pytest.param("qemu", marks=pytest.mark.long("agents"))])
def test_spawn_ssh_stop_resume_stop(provider: str, opening: Opening, speaking: Speaking, repo: Path) -> None:
    with speaking([], scripts=SCRIPTS) as model, opening(provider, model) as yard:
        id = spawned(yard, repo, "--prompt", "[[script:first]] make the third", "--name", "third")
        session = yard.json("show", id)
        assert session["status"] == "running"
        inside = by_ssh(
            yard, id, "whoami; tmux has-session -t agent && echo seated; ls /session; cat /session/prompt.txt"
        )
        assert inside.returncode == 0, inside.stderr
        said = inside.stdout.splitlines()
        assert said[:2] == ["agent", "seated"]
        assert {"repo", "prompt.txt"} <= set(said)
        assert said[-1] == "[[script:first]] make the third"
        ended(yard, id, 1)
        assert by_ssh(yard, id, "cat /session/repo/c.txt").stdout == "three\n"

        assert yard("stop", id, timeout=PATIENCE).returncode == 0
        assert [one["status"] for one in yard.json("list")] == ["stopped"]
        resumed = yard("resume", id, timeout=PATIENCE)
        assert resumed.stdout.strip() == id, resumed.stderr
        again = yard.json("show", id)
        assert (again["status"], again["port"]) == ("running", session["port"])
        asked = yard("send", id, "[[script:more]] which was it?", "--wait", timeout=PATIENCE)
        assert "I remember the third." in asked.stdout, asked.stderr
        assert b"make the third" in model.asked[-1].body, "the agent knows what was said before"
        assert yard("stop", id, timeout=PATIENCE).returncode == 0


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param("docker", marks=pytest.mark.long("agents")),
        pytest.param("qemu", marks=pytest.mark.long("vms")),
    ],
)
def test_eight_at_once(provider: str, opening: Opening, speaking: Speaking, repo: Path) -> None:
    """As above, all at once. In emulated VMs on two processors that takes an hour."""
    with speaking([], scripts=SCRIPTS) as model, opening(provider, model) as yard, ThreadPoolExecutor(EIGHT) as pool:

        def all_of(does: Callable[[str], T]) -> list[T]:
            return list(pool.map(does, ids))

        words = ("--prompt", "[[script:first]] make the third", "--memory", MEMORY[provider], "--cpus", "1")
        ids = list(pool.map(lambda n: spawned(yard, repo, *words, "--name", f"s{n}"), range(EIGHT)))
        all_of(lambda id: ended(yard, id, 1))
        ports = {one["id"]: one["port"] for one in yard.json("list")}
        assert len(set(ports.values())) == EIGHT
        assert {done.stdout for done in all_of(lambda id: by_ssh(yard, id, "cat /session/repo/c.txt"))} == {"three\n"}
        asked = "whoami; tmux has-session -t agent && cat /session/prompt.txt"
        said = {done.stdout for done in all_of(lambda id: by_ssh(yard, id, asked))}
        assert said == {"agent\n[[script:first]] make the third"}
        all_of(lambda id: yard("stop", id, timeout=PATIENCE))
        assert {one["status"] for one in yard.json("list")} == {"stopped"}

        assert all_of(lambda id: yard("resume", id, timeout=PATIENCE).stdout.strip()) == ids
        assert {one["id"]: one["port"] for one in yard.json("list") if one["status"] == "running"} == ports
        more = all_of(lambda id: yard("send", id, "[[script:more]] which?", "--wait", timeout=PATIENCE))
        assert ["I remember the third." in done.stdout for done in more] == [True] * EIGHT, more
        known = [b"make the third" in request.body for request in model.asked if b"which?" in request.body]
        assert len(known) >= EIGHT
        assert all(known), "each agent knows what was said before"
        all_of(lambda id: yard("stop", id, timeout=PATIENCE))
        assert {one["status"] for one in yard.json("list")} == {"stopped"}


def ended(yard: Yard, id: str, turn: int) -> None:
    """Wait until a turn has ended successfully."""
    follower = yard.start("events", "-f", id)
    assert follower.stdout is not None
    try:
        for line in follower.stdout:
            if '"turn.ended"' in line and f'"turn": {turn}' in line:
                assert '"succeeded"' in line, line
                return
    finally:
        follower.kill()
        follower.communicate()
    raise AssertionError("the events ended")
