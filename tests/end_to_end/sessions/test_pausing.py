"""Pause and unpause sessions with `hv`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.sessions.conftest import Stage

PATIENCE = 120.0


def eventually(true: Callable[[], bool], why: Callable[[], object] = lambda: "") -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, why()
        time.sleep(0.1)


def size(stage: Stage, id: str) -> int:
    """Return the size of the log that `counting` writes: of a shared directory also while the session is paused."""
    shared = stage.home / "data" / "sessions" / id / "shared"
    if shared.exists():
        return (shared / "log").stat().st_size if (shared / "log").exists() else 0
    seen = stage("exec", id, "--", "stat", "-c", "%s", "/session/log")
    return int(seen.stdout) if seen.returncode == 0 else 0


def grows(stage: Stage, id: str) -> None:
    at = size(stage, id)
    eventually(lambda: size(stage, id) > at)


def stands(stage: Stage, id: str) -> None:
    """Check that a paused session writes nothing. A disk shows that to no one; the contract of pauses looks at VMs."""
    at = size(stage, id)
    time.sleep(1)
    assert size(stage, id) == at


def counting(stage: Stage, repo: Path) -> str:
    """Spawn a session in which a program writes all the time."""
    id = stage.spawn(repo, "--name", "mine", "-m", "remember apples", timeout=600)
    stage.until(id, lambda body: body["type"] == "turn.ended")
    loop = "nohup sh -c 'while echo x >>/session/log; do sleep 0.05; done' >/dev/null 2>&1 &"
    assert stage("send", id, f"run {loop}", "--wait", timeout=300).returncode == 0
    grows(stage, id)
    return id


def test_a_paused_session_stands_still_refuses_prompts_and_continues(everywhere: Stage, repo: Path) -> None:
    stage = everywhere
    id = counting(stage, repo)
    for _ in range(2):
        done = stage("pause", id)
        assert (done.returncode, done.stdout) == (0, "mine: paused\n"), done.stderr
    stands(stage, id)
    (listed,) = stage.json("list")
    assert (listed["status"], listed["activity"]) == ("paused", "paused")
    for words in (("send", id, "recall"), ("attach", id), ("interrupt", id), ("exec", id, "--", "true"), ("diff", id)):
        refused = stage(*words)
        assert refused.returncode == 125
        assert "its machine is paused" in refused.stderr, words
        assert "hv unpause" in refused.stderr and "Traceback" not in refused.stderr
    # A killed daemon leaves the session paused.
    stage.kill_daemon()
    stage.wake()
    stands(stage, id)
    assert stage.session(id)["status"] == "paused"
    for _ in range(2):
        done = stage("unpause", id)
        assert (done.returncode, done.stdout) == (0, "mine: running\n"), done.stderr
    grows(stage, id)
    assert "kept: apples" in stage("send", id, "recall", "--wait", timeout=300).stdout
    types = [event["body"]["type"] for event in stage.events(id)]
    assert (types.count("session.paused"), types.count("session.unpaused")) == (1, 1)


def test_a_paused_session_is_stopped_resumed_and_removed(everywhere: Stage, repo: Path) -> None:
    stage = everywhere
    id = counting(stage, repo)
    assert stage("pause", id).returncode == 0
    stage.kill_daemon()
    stage.wake()
    stopped = stage("stop", id, timeout=120)
    assert (stopped.returncode, stopped.stdout) == (0, "mine: stopped\n"), stopped.stderr
    stands(stage, id)
    assert stage("resume", id, timeout=600).returncode == 0
    assert "kept: apples" in stage("send", id, "recall", "--wait", timeout=300).stdout
    assert stage("pause", id).returncode == 0
    assert stage("resume", id).returncode == 0
    assert stage.session(id)["status"] == "running"
    assert stage("pause", id).returncode == 0
    assert stage("rm", id).returncode == 125
    assert stage("rm", "-f", id, timeout=120).returncode == 0
    assert stage.json("list", "-a") == []


def test_a_machine_paused_for_a_snapshot_by_a_killed_daemon_continues(stage: Stage, repo: Path) -> None:
    id = counting(stage, repo)
    # There are many files to copy, so that the daemon can be killed meanwhile.
    fill = "sh -c 'mkdir /session/much; for i in $(seq 8000); do echo $i >/session/much/$i; done'"
    assert stage("send", id, f"run {fill}", "--wait", timeout=600).returncode == 0
    halves = stage.home / "data" / "sessions" / id / "snapshots"
    for _ in range(3):
        asking = stage.start("snapshot", id)
        eventually(lambda asking=asking: list(halves.glob(".half-*")) != [] or asking.poll() is not None)  # type: ignore[misc]
        stage.kill_daemon()
        asking.communicate()
        stage.wake()
        eventually(lambda: stage.session(id)["status"] == "running")
        grows(stage, id)
        assert "kept: apples" in stage("send", id, "recall", "--wait", timeout=300).stdout
        if asking.returncode:
            return
    raise AssertionError("no snapshot was cut off")


def test_a_snapshot_is_consistent(stage: Stage, repo: Path) -> None:
    """Two files that always change together are equal in the copy, however long the copy takes."""
    id = counting(stage, repo)
    much = "for i in $(seq 3000); do echo $i >/session/m/$i; done"
    both = "while :; do i=$((i+1)); echo $i >/session/a; echo $i >/session/z; done"
    script = f"mkdir /session/m; {much}; nohup sh -c 'i=0; {both}' >/dev/null 2>&1 &"
    assert stage("send", id, f"run {script}", "--wait", timeout=600).returncode == 0
    shared = stage.home / "data" / "sessions" / id / "shared"
    eventually(lambda: (shared / "z").exists())
    assert stage("snapshot", id, "--name", "now", timeout=300).returncode == 0
    (kept,) = (stage.home / "data" / "sessions" / id / "snapshots").iterdir()
    first, last = ((kept / "shared" / name).read_text().split() for name in ("a", "z"))
    assert int((first or ["0"])[0]) - int((last or ["0"])[0]) in (0, 1) or not first or not last
    notices = [event["body"]["message"] for event in stage.events(id) if event["body"]["type"] == "notice"]
    assert not [said for said in notices if "went on" in said]
    grows(stage, id)
