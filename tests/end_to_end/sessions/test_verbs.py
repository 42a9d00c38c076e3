"""The verbs of sessions, from spawn to rm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hiveyard.api.client import Client
from hiveyard.paths import default_paths
from tests.end_to_end.sessions.conftest import Stage, git


def test_spawn_prints_only_the_id_on_stdout_and_runs_the_prompt(stage: Stage, repo: Path) -> None:
    done = stage("spawn", "--repo", str(repo), "--prompt", "remember apples", "--name", "fruit")
    assert done.returncode == 0, done.stderr
    id = done.stdout.strip()
    assert "the session runs" in done.stderr
    stage.until(id, lambda body: body["type"] == "turn.ended")
    session = stage.session("fruit")
    assert (session["id"], session["status"], session["activity"], session["turns"]) == (id, "running", "idle", 1)
    assert (session["branch"], session["agent"], session["provider"]) == ("hv/fruit", "puppet", "bubblewrap")
    assert stage.said(id) == ["done: remember apples"]
    shared = stage.home / "data" / "sessions" / id / "shared"
    assert (shared / "prompt.txt").read_text() == "remember apples"
    assert (shared / "repo" / "a.txt").read_text() == "one\n"


def test_a_session_is_stopped_resumed_and_remembers(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "-m", "remember apples")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    for _ in range(2):
        stopped = stage("stop", id[:5])
        assert (stopped.returncode, stopped.stdout) == (0, "remember-apples: stopped\n")
    assert [(one["id"], one["status"], one["reason"]) for one in stage.json("list")] == [(id, "stopped", "stopped")]
    for words in (("attach", id), ("send", id, "recall"), ("interrupt", id), ("pause", id)):
        refused = stage(*words)
        assert refused.returncode == 125
        assert "remember-apples is stopped" in refused.stderr and "hv resume" in refused.stderr
    refused = stage("resume", id, "--budget", "0")
    assert refused.returncode == 2
    assert "budget_usd is 0" in refused.stderr
    for _ in range(2):
        resumed = stage("resume", id, "--budget", "3")
        assert (resumed.returncode, resumed.stdout) == (0, id + "\n"), resumed.stderr
    sent = stage("send", id, "recall", "--wait")
    assert (sent.returncode, sent.stdout.splitlines()) == (0, ["❯ recall", "kept: apples"])


def test_resuming_twice_at_once_makes_one_machine(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo)
    stage("stop", id)
    both = [stage.start("resume", id) for _ in range(2)]
    for one in both:
        out, err = one.communicate(timeout=60)
        assert (one.returncode, out) == (0, id + "\n"), err
    assert [event["body"]["type"] for event in stage.events(id)].count("machine.ready") == 2


def test_a_turn_that_fails_and_one_that_is_interrupted(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo)
    failed = stage("send", id, "fail no apples", "--wait")
    assert failed.returncode == 1
    assert "turn 1 failed: no apples" in failed.stderr
    waiting = stage.start("send", id, "wait", "--wait", "--json")
    stage.until(id, lambda body: body.get("text") == "wait")
    assert stage.session(id)["activity"] == "thinking"
    assert stage("interrupt", id).returncode == 0
    out, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert json.loads(out) | {"error": None} == {"id": id, "turn": 2, "outcome": "cancelled", "error": None}
    assert stage("send", id, "recall", "--wait").returncode == 0


def test_prompts_wait_for_their_turn(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "-m", "wait")
    stage.until(id, lambda body: body.get("text") == "wait")
    assert [stage("send", id, f"remember {n}").stdout for n in (2, 3)] == ["turn 2\n", "turn 3\n"]
    stdin = subprocess.run(
        stage.argv("send", id, "-"), env=stage.env, input="recall", capture_output=True, text=True, timeout=60
    )
    assert stdin.stdout == "turn 4\n"
    stage("interrupt", id)
    stage.until(id, lambda body: body.get("text") == "kept: 2 3")


def test_waiting_for_a_session_ends_when_no_prompt_is_left(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "remember apples", "--name", "fruit")
    assert stage("wait", id).stdout == f"{id}  fruit: idle\n"
    assert stage.said(id) == ["done: remember apples"]
    stage("send", id, "run sleep 2")
    stage("send", id, "remember pears")
    assert stage.session(id)["queued"] >= 1
    assert (waited := stage("wait", id)).returncode == 0, waited.stderr
    assert stage.said(id)[-1] == "done: remember pears"
    stage("send", id, "ask")
    assert stage("wait", id).stdout == f"{id}  fruit: waiting\n"
    stage("stop", id)
    assert stage("wait", id).stdout == f"{id}  fruit: stopped\n"


def test_prompts_queued_at_a_stop_are_sent_after_resume(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "-m", "wait")
    stage.until(id, lambda body: body.get("text") == "wait")
    waiting = stage.start("send", id, "remember pears", "--wait")
    stage.until(id, lambda body: body["type"] == "turn.created" and stage.session(id)["last_seq"] > 0)
    stage("stop", id)
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 125, err
    assert stage("resume", id).returncode == 0
    stage.until(id, lambda body: body.get("text") == "done: remember pears")


def test_the_work_of_a_running_session_is_shown_and_applied(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--name", "work")
    nothing = stage("diff", id)
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")
    assert "has no changes" in stage("apply", id).stderr
    stage("send", id, "run echo two > a.txt", "--wait")
    assert "+two" in stage("diff", id).stdout
    assert stage.json("diff", id)["diffstat"] == {"files": 1, "insertions": 1, "deletions": 1}
    assert stage("apply", id).returncode == 0
    assert git(repo, "show", "hv/work:a.txt") == "two"
    stage("send", id, "run git status --porcelain > /session/seen", "--wait")
    seen = stage.home / "data" / "sessions" / id / "shared" / "seen"
    assert seen.read_text() == " M a.txt\n", "nothing was committed under the agent's hands"
    stage("send", id, "run git commit -qam Two; echo three > a.txt", "--wait")
    stage("stop", id)
    assert stage("apply", id).returncode == 0
    assert git(repo, "log", "--format=%s", "main..hv/work").splitlines()[1:] == ["Two"]
    assert git(repo, "show", "hv/work:a.txt") == "three"
    collected = [event for event in stage.events(id) if event["body"]["type"] == "result.collected"]
    assert len(collected) == 3, "what came out before is not told again"


def test_a_command_gets_all_words_after_the_session(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo)
    for before in ((), ("--",)):
        for words in (("echo", "-h", "--json"), ("echo", "-T", "--", "--help")):
            done = stage("exec", id, *before, *words)
            assert (done.returncode, done.stdout) == (0, " ".join(words[1:]) + "\n"), done.stderr
    assert stage("exec", "-T", id, "true").returncode == 0
    failed = stage("exec", "nobody", "npm", "ls", "--json")
    assert (failed.returncode, failed.stdout) == (2, ""), failed
    empty = stage("exec", id, "--")
    assert empty.returncode == 2 and "Traceback" not in empty.stderr


def test_a_program_that_ends_stops_its_session_with_the_reason(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "-m", "die 7")
    stage.until(id, lambda body: body["type"] == "session.stopped")
    session = stage.session(id)
    assert (session["status"], session["reason"]) == ("stopped", "the agent's program ended with exit code 7")
    assert "exit code 7" in stage("list").stdout


OtherGit = Callable[[str, str], None]


@pytest.fixture
def other_git(stage: Stage) -> Iterator[OtherGit]:
    """Replace a verb of the daemon's git by a script."""
    git = stage.programs / "git"

    def replace(verb: str, script: str) -> None:
        git.write_text(f'#!/bin/sh\nfor word; do [ "$word" != {verb} ] || {script}; done\nexec /usr/bin/git "$@"\n')
        git.chmod(0o755)

    yield replace
    git.unlink(missing_ok=True)


def test_ctrl_c_while_the_session_starts_leaves_nothing(stage: Stage, repo: Path, other_git: OtherGit) -> None:
    other_git("clone", "sleep 600")
    spawn = stage.start("spawn", str(repo), "--name", "slow")
    while not stage.sessions():
        assert spawn.poll() is None
    spawn.send_signal(signal.SIGINT)
    out, err = spawn.communicate(timeout=60)
    assert (spawn.returncode, out) == (130, ""), err
    assert "stopped and removed slow" in err
    assert stage.sessions() == []


def test_files_of_an_export_by_a_killed_daemon_are_removed(
    stage: Stage, repo: Path, tmp_path: Path, other_git: OtherGit
) -> None:
    id = stage.spawn(repo)
    stage("stop", id)
    over = tmp_path / "over"
    other_git("bundle", f"while [ ! -e {over} ]; do sleep 0.1; done")
    export = stage.start("export", id, str(tmp_path / "it"))
    sessions = stage.home / "data" / "sessions"
    try:
        wait(lambda: bool(list(sessions.rglob(".export-*"))))
        pid = stage.daemon_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        export.communicate(timeout=60)
    finally:
        over.touch()
    stage.wake()
    # It is renamed at once, and removed by the new daemon's cleanup.
    wait(lambda: [path.name for path in sessions.iterdir()] == [id])


def wait(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_session_that_fails_to_start_reports_why_and_gives_a_hint(
    stage: Stage, repo: Path, other_git: OtherGit
) -> None:
    other_git("clone", "exit 1")
    failed = stage("spawn", str(repo), "--name", "gone")
    assert failed.returncode == 125
    assert failed.stdout == ""
    assert "gone" in failed.stderr and "try:" in failed.stderr
    assert [one["status"] for one in stage.sessions()] == ["failed"]
    assert stage.json("list") == []
    assert stage("rm", "gone").returncode == 0


IMPOSSIBLE: tuple[tuple[list[str], int, str], ...] = (
    (["spawn", "/nowhere"], 2, "/nowhere"),
    (["spawn", ".", "--repo", "."], 2, "one of them"),
    (["spawn", ".", "-m", " "], 2, "empty"),
    (["spawn", ".", "--name", "No Good"], 2, "No Good"),
    (["spawn", ".", "--port", "80"], 2, "80"),
    (["spawn", ".", "--agent", "command"], 2, "cannot stay"),
    (["spawn", ".", "--agent", "clippy"], 2, "clippy"),
    (["spawn", ".", "--memory", "16777216"], 125, "does not fit"),
    (["resume", "nothing"], 2, "nothing"),
    (["stop", "nothing"], 2, "nothing"),
    (["stop", ""], 2, "the name is empty"),
    (["show", ""], 2, "the name is empty"),
    (["attach", "nothing"], 2, "nothing"),
    (["send", "nothing", "x"], 2, "nothing"),
    (["send", "nothing"], 2, "the prompt is missing"),
    (["rm"], 2, "--finished"),
    (["rm", "--older-than", "7d", "x"], 2, "--finished"),
    (["rm", "--finished", "--older-than", "soon"], 2, "soon"),
)


def test_bad_input_is_one_clear_line(stage: Stage, repo: Path, subtests: pytest.Subtests) -> None:
    for words, status, complaint in IMPOSSIBLE:
        with subtests.test(words=words):
            done = stage(*[str(repo) if word == "." else word for word in words])
            assert done.returncode == status, done.stderr
            assert complaint in done.stderr
            assert "Traceback" not in done.stderr + done.stdout
    assert stage.sessions() == []


def test_names_must_be_clear(stage: Stage, repo: Path) -> None:
    stage.spawn(repo, "--name", "one")
    assert "--name one-2" in stage("spawn", str(repo), "--name", "one").stderr
    task = stage("run", str(repo), "-m", "a task", "--command", "true", "-d").stdout.strip()
    stage("wait", task)
    for words, why in (
        (("send", task, "x"), "command takes one prompt only and cannot stay in a session"),
        (("resume", task), "command takes one prompt only and cannot stay in a session"),
        (("attach", task), "is a task, not a session"),
        (("pause", task), "is a task, not a session"),
    ):
        refused = stage(*words)
        assert refused.returncode == 2
        assert why in refused.stderr
    long = stage("run", str(repo), "-m", "long", "--command", "sleep 600", "-d").stdout.strip()
    assert "is a task, and" in stage("send", long, "x").stderr
    assert "cancelled" in stage("stop", long).stdout
    assert "is a session, not a task" in stage("cancel", "one").stderr
    assert [one["name"] for one in stage.json("list")] == ["one"]
    assert stage("rm", "one").returncode == 125
    assert stage("rm", "-f", task, long, "one").returncode == 0


def test_the_start_of_two_ids_is_refused_with_both_names_and_nothing_happens(stage: Stage, repo: Path) -> None:
    daemon = Client(default_paths({"HIVEYARD_HOME": str(stage.home)}).socket)
    ids = {"one": "qqq2222222", "two": "qqq3333333"}
    for name, id in ids.items():
        # `hv spawn` makes ids that rarely have the same beginning.
        daemon.call("POST", "/v1/sessions", {"repo": str(repo), "id": id, "name": name})
        stage.until(id, lambda body: body["type"] == "agent.started")
    before = stage.sessions()
    said = "error: 'qqq' may be qqq2222222 (one), qqq3333333 (two)\n  try: hv list -a, or hv ps -a\n"
    for words in (
        ("show", "qqq"),
        ("attach", "qqq"),
        ("send", "qqq", "remember apples"),
        ("exec", "qqq", "--", "touch", "/session/seen"),
        ("port", "qqq", "3000"),
        ("stop", "one", "qqq"),
        ("resume", "qqq"),
        ("fork", "qqq"),
        ("compare", "one", "qqq"),
        ("rm", "-f", "one", "qqq"),
    ):
        refused = stage(*words)
        assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", said), words
    assert stage.sessions() == before
    assert stage("stop", "qqq2").stdout == "one: stopped\n"


def test_a_dry_run_refuses_a_running_session_as_the_removal_would(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--name", "seated")
    refused, would = stage("rm", "seated"), stage("rm", "--dry-run", "seated")
    assert (would.returncode, would.stdout, would.stderr) == (125, "", refused.stderr)
    assert stage("rm", "-f", "--dry-run", "seated").stdout == f"{id}  seated, running\n"


def test_finished_tasks_and_sessions_are_removed_by_age(stage: Stage, repo: Path) -> None:
    old, running = stage.spawn(repo, "--name", "old"), stage.spawn(repo, "--name", "running")
    stage("stop", old)
    task = stage.json("run", str(repo), "-m", "a task", "--command", "true")["id"]
    assert stage.json("rm", "--finished", "--older-than", "1h") == []
    would = stage("rm", "--finished", "--dry-run")
    assert sorted(line.split()[0] for line in would.stdout.splitlines()) == sorted([old, task])
    assert sorted(stage.json("rm", "--finished")) == sorted([old, task])
    assert [one["id"] for one in stage.sessions()] == [running]


def test_running_and_paused_sessions_are_never_removed_by_age(stage: Stage, repo: Path, other_git: OtherGit) -> None:
    names = ("running", "frozen", "stopped")
    running, frozen, stopped = (stage.spawn(repo, "--name", name) for name in names)
    assert stage("pause", frozen).returncode == 0
    assert stage("stop", stopped).returncode == 0
    other_git("clone", "exit 1")
    assert stage("spawn", str(repo), "--name", "failed").returncode == 125
    failed = stage.session("failed")["id"]
    assert stage.json("rm", "--finished", "--older-than", "1h") == []
    assert sorted(stage.json("rm", "--finished", "--older-than", "0s")) == sorted([stopped, failed])
    assert {(one["id"], one["status"]) for one in stage.sessions()} == {
        (running, "running"),
        (frozen, "paused"),
    }
    assert {path.name for path in (stage.home / "data" / "sessions").iterdir()} == {running, frozen}
