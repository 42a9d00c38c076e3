"""Snapshots, forks, rewinds, exports and disk usage with `hv`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.end_to_end.sessions.conftest import Stage, git, repo

__all__ = ["repo"]


def waited(stage: Stage, id: str, prompts: int) -> None:
    """Wait until a number of turns have ended and none is running."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ended = [event for event in stage.events(id) if event["body"]["type"] == "turn.ended"]
        if len(ended) >= prompts:
            return
        time.sleep(0.1)
    raise AssertionError(stage.events(id)[-5:])


def running(stage: Stage, id: str) -> None:
    until = time.monotonic() + 120
    while stage.session(id)["status"] != "running":
        assert time.monotonic() < until
        time.sleep(0.1)


def test_three_forks_of_one_snapshot_are_compared(without_vms: Stage, repo: Path) -> None:
    stage = without_vms
    id = stage.spawn(repo, "--prompt", "remember apple", "--memory", "1024", timeout=600)
    waited(stage, id, 1)
    assert stage("snapshot", id, "--name", "early").stdout == "early\n"
    done = stage("fork", id, "-m", "run echo one > one.txt", "-m", "run echo two > two.txt", "--name", "idea")
    assert done.returncode == 0, done.stderr
    assert "files were copied" in done.stderr
    children = done.stdout.split()
    for child in children:
        waited(stage, child, 1)
    assert stage("send", id, "run echo own > own.txt", "--wait").returncode == 0
    told = stage("compare", *children).stdout
    assert "one.txt" in told
    assert "idea-2" in told
    found = stage.json("compare", id, *children)
    assert [[file["path"] for file in one["files"]] for one in found] == [["own.txt"], ["one.txt"], ["two.txt"]]
    listed = stage("snapshots", id).stdout
    assert "early" in listed
    assert "turn 1" in listed
    assert "kept: apple" in stage("send", children[0], "recall", "--wait").stdout
    assert stage("rm", "-f", *children).returncode == 0
    done = stage("rewind", id, "early")
    assert done.returncode == 0, done.stderr
    running(stage, id)
    assert stage("exec", id, "--", "ls").stdout.split() == ["a.txt", "b.txt"]
    assert "kept: apple" in stage("send", id, "recall", "--wait").stdout
    assert stage("snapshots", id, "--remove", "early").returncode == 0
    assert stage.json("snapshots", id) == []
    assert [one["id"] for one in stage.json("list", "-a")] == [id]


def test_a_session_is_exported_and_imported(stage: Stage, repo: Path, tmp_path: Path) -> None:
    id = stage.spawn(repo, "--prompt", "remember apple")
    waited(stage, id, 1)
    refused = stage("export", id, str(tmp_path / "it"))
    assert refused.returncode == 125
    assert "hv stop" in refused.stderr
    assert stage("stop", id).returncode == 0
    assert stage("export", id, str(tmp_path / "it")).returncode == 0
    piped = subprocess.run(stage.argv("export", id, "-"), env=stage.env, capture_output=True)
    assert piped.returncode == 0, piped.stderr
    again = subprocess.run(
        stage.argv("import", "-", "--new", "--name", "twin"), env=stage.env, input=piped.stdout, capture_output=True
    )
    assert again.returncode == 0, again.stderr
    taken = stage("import", str(tmp_path / "it"))
    assert taken.returncode == 2
    assert "--new" in taken.stderr
    assert stage("resume", "twin").returncode == 0
    running(stage, "twin")


def test_disk_usage_is_shown_and_freed(stage: Stage, repo: Path) -> None:
    stage.spawn(repo)
    assert "session" in stage("system", "df").stdout
    assert stage.json("system", "df")["total"] > 0
    assert "SIZE" in stage("system", "df", "-v").stdout
    done = stage("system", "prune", "--dry-run")
    assert done.returncode == 0
    assert "would free" in done.stdout


IMPOSSIBLE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("fork", "ID", "-m", " "), "the prompt is empty"),
    (("fork", "ID", "-n", "40"), "count"),
    (("fork", "ID", "-n", "3", "-m", "a", "-m", "b"), "2 instructions for 3 children"),
    (("fork", "ID", "--from", "nowhere"), "no snapshot 'nowhere'"),
    (("rewind", "ID", "nowhere"), "no snapshot 'nowhere'"),
    (("snapshot", "ID", "--name", "../x"), "is not a valid snapshot name"),
    (("snapshots", "ID", "--remove", "x"), "no snapshot 'x'"),
    (("compare", "ID", "nobody"), "no task or session is called 'nobody'"),
    (("import", "/nowhere"), "is not a file"),
    (("export", "nobody", "x"), "no task or session is called 'nobody'"),
)


def test_an_impossible_request_is_one_clear_line(stage: Stage, repo: Path, subtests: pytest.Subtests) -> None:
    id = stage.spawn(repo)
    for words, complaint in IMPOSSIBLE:
        with subtests.test(words=words):
            done = stage(*(id if word == "ID" else word for word in words))
            assert done.returncode in (2, 125)
            assert complaint in done.stderr
            assert "Traceback" not in done.stderr


LATER = [pytest.param(after, marks=pytest.mark.long("storms")) for after in (0.0, 0.05, 0.2, 0.4)]


@pytest.mark.parametrize("after", [0.1, *LATER])
def test_a_daemon_killed_during_a_verb_leaves_the_old_or_the_new_state(stage: Stage, repo: Path, after: float) -> None:
    (repo / "data.bin").write_bytes(os.urandom(4 << 20))
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "data")
    id = stage.spawn(repo, "--prompt", "remember apple")
    waited(stage, id, 1)
    assert stage("snapshot", id, "--name", "early").returncode == 0
    for words in (("snapshot", id), ("fork", id, "-n", "2", "-m", "recall"), ("rewind", id, "early")):
        running(stage, id)
        known = {session["id"] for session in stage.json("list", "-a")}
        asking = stage.start(*words)
        time.sleep(after + 0.3)  # hv takes that long to send its request
        pid = stage.daemon_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        asking.kill()  # otherwise it would start a daemon that does not know the puppet
        asking.communicate()
        stage.wake()
        running(stage, id)
        born = {session["id"] for session in stage.json("list", "-a")} - known
        assert len(born) in (0, 2)
        for child in born:
            waited(stage, child, 1)
            assert stage("rm", "-f", child).returncode == 0
    home = stage.home / "data" / "sessions"
    until = time.monotonic() + 60
    while [path.name for path in home.iterdir()] != [id] or list(home.glob("*/snapshots/.half-*")):
        assert time.monotonic() < until, list(home.iterdir())
        time.sleep(0.1)
    kept = {snapshot["id"] for snapshot in stage.json("snapshots", id)}
    assert {path.name for path in (home / id / "snapshots").iterdir()} == kept
    assert stage("send", id, "recall").returncode == 0
    waited(stage, id, 2)
    last = [event["body"]["text"] for event in stage.events(id) if event["body"]["type"] == "agent.ended"][-1]
    assert last == "kept: apple"
    assert json.loads((home / id / "meta.json").read_text())["status"] == "running"
