"""Crashes of the daemon and of the machine in the middle of a turn."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hiveyard.testing.script import Call, File, Step, say, shell
from tests.end_to_end.main_job.conftest import Event, Opening, Speaking, Yard, patched
from tests.end_to_end.main_job.host import processes_of
from tests.engine.conftest import git
from tests.support.vm import vm_pid

pytestmark = pytest.mark.real

TICKS = 16
SCRIPT = [
    Step(text="First a file.", calls=[Call(write=File(path="/session/repo/c.txt", content="three\n"))]),
    shell(f"for i in $(seq {TICKS}); do echo $i >> ticks.txt; sleep 0.5; done; git add -A; git commit -qm Ticks"),
    say("All ticks are counted."),
]


def test_a_turn_survives_a_killed_daemon(opening: Opening, speaking: Speaking, repo: Path, tmp_path: Path) -> None:
    with speaking(SCRIPT) as model, opening("qemu", model) as yard:
        id = _begun(yard, repo, lambda body: body.get("summary", "").startswith("Bash: for i"), "--agent", "claude")
        vm = _vm(yard, id)
        before = yard.daemon_pid()
        yard.kill_daemon()
        assert len(model.requests) < len(SCRIPT), "the agent was still at work"

        followed = yard("logs", "-f", id, timeout=300)
        assert "All ticks are counted." in followed.stdout, followed.stderr
        assert yard.daemon_pid() not in (None, before)
        report = yard.json("show", id)
        assert (report["status"], report["exit_code"], report["error"]) == ("completed", 0, None)
        work = patched(repo, report, tmp_path / "patched")
        assert (work / "ticks.txt").read_text().split() == [str(tick) for tick in range(1, TICKS + 1)]
        assert git(repo, "rev-list", "--count", "main") == "1"
        assert len(model.requests) == report["usage"]["requests"] == len(SCRIPT)

        events = yard.events(id)
        _nothing_lost_or_doubled(events, yard.raw(id))
        mirrored = (yard.sessions / id / "events.jsonl").read_text().splitlines()
        assert [json.loads(line)["seq"] for line in mirrored] == [event["seq"] for event in events]
        assert Counter(event["body"]["type"] for event in events)["machine.ready"] == 1, "it is the same machine"
        _nothing_left(yard, id, vm)


def test_a_dead_machine_fails_the_task_and_its_work_is_kept(opening: Opening, repo: Path, tmp_path: Path) -> None:
    with opening("qemu") as yard:
        line = "echo three > c.txt; git add c.txt; git commit -qm Third; echo ONE > a.txt; sync; echo begun; sleep 600"
        id = _begun(yard, repo, lambda body: "begun" in body.get("text", ""), "--command", line)
        vm = _vm(yard, id)
        os.kill(vm, signal.SIGKILL)
        followed = yard("logs", "-f", id, timeout=300)
        report = yard.json("show", id)
        assert (report["status"], report["exit_code"]) == ("failed", 125), followed.stdout + followed.stderr
        assert report["error"]["code"] == "machine.lost"
        assert f"hv-{id}" in report["error"]["message"]
        assert report["commits"] == 2
        work = patched(repo, report, tmp_path / "patched")
        assert [(work / name).read_text() for name in ("a.txt", "c.txt")] == ["ONE\n", "three\n"]
        _nothing_left(yard, id, vm)


def _begun(yard: Yard, repo: Path, sign: Callable[[Event], bool], *words: str) -> str:
    """Start a task and wait for one of its events; return its id."""
    started = yard("run", str(repo), "-m", "Count the ticks.", "-d", *words)
    assert started.returncode == 0, started.stderr
    id = started.stdout.strip()
    follower = yard.start("events", "-f", id)
    assert follower.stdout is not None
    try:
        for line in follower.stdout:
            body = json.loads(line)["body"]
            assert body["type"] not in ("task.failed", "task.completed"), body
            if sign(body):
                return id
    finally:
        follower.kill()
        follower.communicate()
    raise AssertionError("the events ended")


def _vm(yard: Yard, id: str) -> int:
    return vm_pid(yard.home / "data" / "machines" / "qemu", f"hv-{id}")


def _nothing_lost_or_doubled(events: list[Event], raw: bytes) -> None:
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    types = Counter(event["body"]["type"] for event in events)
    once = ("task.created", "task.started", "turn.started", "agent.started", "agent.ended", "turn.ended")
    assert {name: types[name] for name in (*once, "task.completed", "result.collected")} == dict.fromkeys(
        (*once, "task.completed", "result.collected"), 1
    )
    assert (types["agent.tool_called"], types["agent.tool_returned"]) == (2, 2)
    lines = [json.loads(line) for line in raw.splitlines()]
    assert lines[0]["subtype"] == "init"
    assert [line["type"] for line in lines].count("result") == 1
    named = Counter(line["uuid"] for line in lines if "uuid" in line)
    assert len(named) > 4
    assert set(named.values()) == {1}, "a line was read twice"


def _ended(pid: int) -> bool:
    """Return whether a process has ended, or is a zombie that the init, its new parent, has not reaped yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def _nothing_left(yard: Yard, id: str, vm: int) -> None:
    """Check that after `hv rm` there is no process, mount or file of the task."""
    assert yard("rm", id).returncode == 0
    assert yard.json("ps", "-a") == []
    assert _ended(vm)
    assert set(processes_of(yard.home)) <= {yard.daemon_pid()}, processes_of(yard.home)
    assert str(yard.home) not in Path("/proc/self/mountinfo").read_text()
    assert list((yard.home / "data" / "machines" / "qemu").glob("*hv-*")) == []
    left = list(yard.home.rglob(f"*{id}*"))
    assert left == []
