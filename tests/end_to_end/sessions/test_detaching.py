"""Detach from a session and attach again, also after kill -9 of everything, and many sessions at once."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.end_to_end.sessions.conftest import Stage
from tests.support.person import person

pytestmark = pytest.mark.anyio
MANY, MANY_VMS = 4, 2


def crash(stage: Stage, id: str) -> None:
    """Kill every process in a session's machine: those that have its directory as /session."""
    shared = f"{stage.home}/data/sessions/{id}/shared"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            mounts = [line.split()[3:5] for line in (process / "mountinfo").read_text().splitlines()]
            if [shared, "/session"] in mounts:
                os.kill(int(process.name), signal.SIGKILL)


async def test_detach_and_attach_keep_the_screen(without_vms: Stage, repo: Path) -> None:
    stage = without_vms
    id = stage.spawn(repo, timeout=600)
    async with person(stage.argv("attach", id), env=stage.env) as somebody:
        before = somebody.modes()
        await somebody.sees("puppet")
        somebody.type("remember typed\r")
        await somebody.sees("done: remember typed")
        somebody.type("\x02d")
        assert await somebody.leaves() == 0
        assert somebody.modes() == before
    assert stage.said(id) == ["done: remember typed"], "a person's own turn is one, too"
    assert stage("send", id, "run echo meanwhile", "--wait").returncode == 0
    async with person(stage.argv("attach", id), env=stage.env) as again:
        await again.sees("done: remember typed")
        await again.sees("<run echo meanwhile>")
        again.type("recall\r")
        await again.sees("kept: typed")
        async with person(stage.argv("attach", "--read-only", id), env=stage.env) as reader:
            await reader.sees("kept: typed")
            reader.type("remember nothing\r")
            again.type("recall\r")
            await reader.sees("kept: typed")
            assert "nothing" not in again.screen
        again.type("\x02d")
        assert await again.leaves() == 0
    assert stage.session(id)["status"] == "running"


async def test_spawn_can_attach_at_once(stage: Stage, repo: Path) -> None:
    async with person(stage.argv("spawn", str(repo), "--name", "mine", "--attach"), env=stage.env) as somebody:
        await somebody.sees("puppet")
        somebody.type("die 0\r")
        assert await somebody.leaves() == 0
    stage.until("mine", lambda body: body["type"] == "session.stopped")
    assert [one["reason"] for one in stage.json("list")] == ["the agent's program ended with exit code 0"]


def test_after_a_reboot_the_list_is_right_at_once_and_resume_works(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--name", "mine", "-m", "remember apples")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    stage("send", id, "wait")
    stage.until(id, lambda body: body.get("text") == "wait")
    stage.kill_daemon()
    crash(stage, id)
    stage.wake()
    (session,) = stage.json("list")
    assert (session["status"], session["turns"]) == ("stopped", 2)
    assert f"hv-{id}" in session["reason"]
    assert stage("resume", "mine").returncode == 0
    assert "kept: apples" in stage("send", "mine", "recall", "--wait").stdout


def test_after_a_reboot_the_first_verb_may_be_resume(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--name", "mine", "-m", "remember apples")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    assert stage("send", id, "run echo mine > mine.txt", "--wait").returncode == 0
    stage.kill_daemon()
    crash(stage, id)
    stage.wake()
    brought = stage("diff", "mine")  # by another machine
    assert ("+mine" in brought.stdout, brought.stderr) == (True, "")
    resumed = stage("resume", "mine")
    assert (resumed.returncode, resumed.stdout) == (0, id + "\n"), resumed.stderr
    assert "kept: apples" in stage("send", "mine", "recall", "--wait").stdout


def test_a_lost_machine_stops_its_session_and_resume_works(without_vms: Stage, repo: Path) -> None:
    stage = without_vms
    id = stage.spawn(repo, "--name", "mine", "-m", "remember apples", timeout=600)
    stage.until(id, lambda body: body["type"] == "turn.ended")
    assert stage("send", id, "run echo mine > mine.txt", "--wait").returncode == 0
    stage("send", id, "wait")
    stage.until(id, lambda body: body.get("text") == "wait")
    crash(stage, id)
    stopped = stage.until(id, lambda body: body["type"] == "session.stopped")
    assert f"hv-{id}" in stopped["reason"]
    (session,) = stage.json("list")
    assert (session["status"], session["reason"], session["turns"]) == ("stopped", stopped["reason"], 3)
    ended = [event["body"]["outcome"] for event in stage.events(id) if event["body"]["type"] == "turn.ended"]
    assert ended == ["succeeded", "succeeded", "failed"]
    files = stage.home / "data" / "sessions" / id / "shared" / "repo"
    assert (files / "mine.txt").read_text() == "mine\n"
    resumed = stage("resume", "mine")
    assert (resumed.returncode, resumed.stdout) == (0, id + "\n"), resumed.stderr
    assert "kept: apples" in stage("send", "mine", "recall", "--wait").stdout
    assert stage("exec", id, "--", "cat", "mine.txt").stdout == "mine\n"
    types = [event["body"]["type"] for event in stage.events(id)]
    assert types.count("machine.ready") == 3, "one of them brought out the work"


def test_the_agent_does_not_notice_a_killed_daemon(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "-m", "wait")
    stage.until(id, lambda body: body.get("text") == "wait")
    stage.kill_daemon()
    stage.wake()
    assert stage("interrupt", id).returncode == 0
    stage.until(id, lambda body: body["type"] == "turn.ended")
    assert stage("send", id, "recall", "--wait").returncode == 0
    types = [event["body"]["type"] for event in stage.events(id)]
    assert (types.count("machine.ready"), types.count("agent.started"), types.count("turn.started")) == (1, 1, 2)


def test_many_at_once(everywhere: Stage, repo: Path, request: pytest.FixtureRequest) -> None:
    stage, patience = everywhere, 900.0
    many = MANY_VMS if "qemu" in request.node.name else MANY

    def spawn(number: int) -> str:
        words = ("--name", f"s{number}", "--memory", "1024", "-m", f"remember {number}")
        return stage.spawn(repo, *words, timeout=patience)

    def each(*words: str) -> list[str]:
        """Run `hv` for each session at once; return the outputs."""
        done = list(pool.map(lambda id: stage(words[0], id, *words[1:], timeout=patience), ids))
        assert all(one.returncode == 0 for one in done), done
        return [one.stdout.splitlines()[-1] for one in done]

    with ThreadPoolExecutor(many) as pool:
        ids = list(pool.map(spawn, range(many)))
        assert len({one["port"] for one in stage.json("list")}) == many
        assert each("send", "recall", "--wait") == [f"kept: {number}" for number in range(many)]
        each("stop")
        assert {one["status"] for one in stage.json("list")} == {"stopped"}
        each("resume")
        assert each("send", "recall", "--wait") == [f"kept: {number}" for number in range(many)]


async def test_a_live_session_shows_its_transcript_and_takes_lines(stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--agent", "live-puppet", "-m", "say 1 10")
    async with person(stage.argv("attach", id), env=stage.env) as somebody:
        await somebody.sees("thing 0")
        somebody.type("wait\r")
        await somebody.sees("▸ wait")
        somebody.type("/now hurry\r")
        await somebody.sees("added: hurry")
        somebody.type("\x03")
        await somebody.sees("the turn was cancelled")
        somebody.type("ask\r")
        await somebody.sees("waits for you: may it?")
        somebody.type("/answer never\r")
        await somebody.sees("answered: never")
        somebody.type("/now too late\r")
        await somebody.sees("no turn runs that text could be added to")
        somebody.type("\x02d")
        assert await somebody.leaves() == 0
    assert stage.session(id)["status"] == "running"
    assert stage("stop", id).returncode == 0
    async with person(stage.argv("attach", id), env=stage.env) as somebody:
        assert await somebody.leaves() == 125
