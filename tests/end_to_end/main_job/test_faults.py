"""Failures of vendors, budgets, tapes and misbehaving agents, each with its own clear error."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from hiveyard.testing.model import Recorded, ScriptedModel
from hiveyard.testing.script import Call, File, Step, Tokens, cut, refuse, say, shell
from tests.agents.hostile import poison
from tests.end_to_end.main_job.conftest import Opening, Report, Speaking, Yard, only
from tests.engine.conftest import git

pytestmark = pytest.mark.real

LIMIT_MIB = 8
CONFIG = f"output_limit_mib = {LIMIT_MIB}\n"
EDIT = Call(write=File(path="/session/repo/c.txt", content="three\n"))
SCRIPTS = {
    "edit": [Step(calls=[EDIT]), say("Done.")],
    "401": [refuse(401, message="invalid x-api-key")],
    "429": [refuse(429, times=2, message="slow down"), say("Done.")],
    "500": [refuse(500, message="out of order")],
    "cut": [cut(times=1), say("Done.")],
    "dear": [
        Step(calls=[EDIT], usage=Tokens(input=1_000_000)),
        *[shell("echo I go on") for _ in range(20)],
    ],
}


class Fault(NamedTuple):
    """An installation and its model; the prompt names the model's script."""

    yard: Yard
    model: ScriptedModel

    def run(self, repo: Path, script: str, *words: str) -> tuple[int, Report]:
        return self.yard.run(repo, "-m", f"Do it. {_named(script)}", "--agent", "claude", *words)

    def asked(self, script: str) -> Sequence[Recorded]:
        return [request for request in self.model.requests if _named(script) in request.prompt]

    def command(self, repo: Path, line: str, *words: str) -> tuple[int, Report]:
        return self.yard.run(repo, "-m", "Do it.", "--command", line, *words)


def _named(script: str) -> str:
    return f"[[script:{script}]]"


@pytest.fixture(scope="module")
def fault(opening: Opening, speaking: Speaking) -> Iterator[Fault]:
    with speaking([], scripts=SCRIPTS) as model, opening("bubblewrap", model, CONFIG) as yard:
        yield Fault(yard, model)


# --- vendors --------------------------------------------------------------------------------------------------------


def test_a_key_that_the_vendor_refuses_is_reported_at_once(fault: Fault, repo: Path) -> None:
    status, report = fault.run(repo, "401")
    assert (status, report["status"], report["error"]["code"]) == (1, "failed", "credentials.key_refused")
    assert report["error"]["hint"]
    assert len(fault.asked("401")) <= 2, "asking again would not have helped"


def test_a_rate_limited_request_is_retried(fault: Fault, repo: Path) -> None:
    status, report = fault.run(repo, "429")
    assert (status, report["error"]) == (0, None)
    called = fault.yard.bodies(report["id"], "model.called", "model.failed")
    assert [body["status"] for body in called] == [429, 429, 200]
    assert [body["failure"]["code"] for body in called[:2]] == ["door.rate_limited"] * 2
    assert fault.yard.bodies(report["id"], "agent.retrying", "agent.rate_limited")


def test_a_vendor_that_keeps_failing_fails_the_task(fault: Fault, repo: Path) -> None:
    status, report = fault.run(repo, "500")
    assert (status, report["status"], report["error"]["code"]) == (1, "failed", "door.upstream_failed")
    assert len(fault.asked("500")) > 2, "it was asked again"
    assert "500" in str(fault.yard.bodies(report["id"], "model.failed")[-1])


def test_an_interrupted_answer_is_requested_again(fault: Fault, repo: Path) -> None:
    status, report = fault.run(repo, "cut")
    assert (status, report["error"]) == (0, None)
    assert len(fault.asked("cut")) >= 2
    told = fault.yard.bodies(report["id"], "model.failed", "model.called")
    assert [body.get("complete", True) and body["type"] == "model.called" for body in told][-1]
    assert "door.upstream_failed" in str(told), "the cut is on record"


def test_a_spent_budget_stops_the_turn_and_keeps_its_work(fault: Fault, repo: Path) -> None:
    status, report = fault.run(repo, "dear", "--budget", "0.50")
    assert (status, report["status"], report["error"]["code"]) == (1, "failed", "door.budget_spent")
    assert "0.50" in report["error"]["message"]
    assert report["usage"]["cost_usd"] > 0.5
    assert len(fault.asked("dear")) == 1, "nothing more was bought"
    assert only(fault.yard.bodies(report["id"], "budget.exhausted"))["budget_usd"] == 0.5


def test_without_a_key_no_request_is_made(fault: Fault, opening: Opening, repo: Path) -> None:
    before = len(fault.model.requests)
    with opening("bubblewrap", fault.model, ANTHROPIC_API_KEY="") as yard:
        refused = yard("run", str(repo), "-m", "Do it.", "--agent", "claude", "--json")
        error = json.loads(refused.stdout)["error"]
        assert (refused.returncode, error["code"]) == (125, "credentials.key_missing")
        assert "ANTHROPIC_API_KEY=… hv serve" in error["hint"]
        assert not yard.json("ps", "-a"), "nothing was begun"
    assert len(fault.model.requests) == before


# --- tapes ----------------------------------------------------------------------------------------------------------


def test_a_tape_gives_the_same_result_with_no_vendor_and_no_key(
    fault: Fault, opening: Opening, repo: Path, tmp_path: Path
) -> None:
    tape = tmp_path / "tape.jsonl"
    status, recorded = fault.run(repo, "edit", "--record", str(tape))
    assert status == 0
    assert fault.yard.env["ANTHROPIC_API_KEY"] not in tape.read_text()
    with opening("bubblewrap", ANTHROPIC_API_KEY="") as yard:
        words = ("--agent", "claude", "--tape", str(tape))
        status, replayed = yard.run(repo, "-m", f"Do it. {_named('edit')}", *words)
        assert (status, replayed["error"]) == (0, None)
        for name in ("commits", "diffstat", "usage", "base", "branch", "program"):
            assert replayed[name] == recorded[name], name
        assert _changes(replayed) == _changes(recorded)
        assert {body["source"] for body in yard.bodies(replayed["id"], "model.called")} == {"tape"}

        status, other = yard.run(repo, "-m", "Write a poem about bees, in four lines.", *words)
        assert (status, other["error"]["code"]) == (1, "door.not_on_tape")
        assert other["commits"] == 0


def _changes(report: Report) -> str:
    """Return a patch without the ids and dates of commits."""
    return "".join(line for line in Path(report["patch"]).read_text().splitlines(True) if line[:1] in "+-@ ")


# --- agents that misbehave ------------------------------------------------------------------------------------------


def test_an_agent_that_prints_a_gigabyte_is_stopped(fault: Fault, repo: Path) -> None:
    line = "echo x > x.txt; yes 'a line of sixty-four characters, as wide as a line may well be ..' | head -c 1G"
    status, report = fault.command(repo, line)
    assert (status, report["error"]["code"]) == (1, "agent.flood")
    assert str(LIMIT_MIB) in report["error"]["message"]
    assert report["commits"] == 1, "its work is kept"
    taken = subprocess.run(["du", "-sb", str(fault.yard.sessions / report["id"])], capture_output=True, check=True)
    assert int(taken.stdout.split()[0]) < 8 * LIMIT_MIB << 20


def test_binary_output_is_kept_byte_for_byte(fault: Fault, repo: Path) -> None:
    line = "head -c 300000 /dev/urandom > noise; cat noise; echo; sha256sum < noise > sum.txt; rm noise"
    status, report = fault.command(repo, line)
    assert status == 0, report["error"]
    printed = fault.yard.raw(report["id"]).removesuffix(b"\n").removesuffix(b"\n")
    assert f"+{hashlib.sha256(printed).hexdigest()}" in Path(report["patch"]).read_text()
    logs = fault.yard("logs", report["id"]).stdout
    assert not [char for char in logs if ord(char) < 32 and char not in "\n\t"]


def test_an_agent_that_never_ends_is_stopped_with_all_its_processes_even_a_fork_bomb(fault: Fault, repo: Path) -> None:
    (repo / "bomb.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('begun', os.write(os.open('x.txt', os.O_CREAT | os.O_WRONLY), b'x'), flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        os.fork()\n"
        "    except OSError:\n"
        "        time.sleep(0.5)\n"
    )
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "A bomb")
    # A small machine, so that concurrent tests get one, too. The fork bomb reaches its limit all the same.
    line = "setsid sleep 86391 & ulimit -u 300; python3 bomb.py"
    status, report = fault.command(repo, line, "--timeout", "3")
    assert (status, report["error"]["code"], report["commits"]) == (124, "agent.timeout", 1), report["error"]
    assert _with_argument(b"bomb.py") == []
    assert _with_argument(b"86391") == []
    after, healthy = fault.command(repo, "echo well")
    assert (after, healthy["status"]) == (0, "completed")


def test_a_long_prompt_arrives_unchanged(fault: Fault, repo: Path, tmp_path: Path) -> None:
    hard = "first \"line\" 'quoted' $HOME `id` \\n --model x {{prompt}}\n\ttab é 🐝 \u202e\n" * 16_000
    prompt = f"{hard}{_named('edit')}"
    assert len(prompt.encode()) > 1 << 20
    (tmp_path / "prompt").write_bytes(prompt.encode())
    words = ("--prompt-file", str(tmp_path / "prompt"), "--agent", "claude")
    status, report = fault.yard.run(repo, *words)
    assert (status, report["error"]) == (0, None)
    assert prompt in fault.asked("edit")[-1].prompt


@pytest.mark.parametrize("agent", ["claude", pytest.param("opencode", marks=pytest.mark.long("agents"))])
def test_configuration_of_a_repository_does_not_run(agent: str, fault: Fault, repo: Path) -> None:
    # A trap that ran would leave a mark in the agent's work, and so in its commit.
    poison(repo, Path("/session/repo/sprung"))
    (repo / "sprung").mkdir()
    (repo / "sprung" / "none-yet").touch()
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "Traps")
    words = ("-m", f"Do it. {_named('edit')}", "--agent", agent)
    status, report = fault.yard.run(repo, *words)
    assert (status, report["error"]) == (0, None)
    assert report["diffstat"] == {"files": 1, "insertions": 1, "deletions": 0}, Path(report["patch"]).read_text()
    assert b"HOSTILE_ENV" not in fault.yard.raw(report["id"])


def test_git_hooks_and_configuration_of_an_agent_do_not_run_on_the_host(
    fault: Fault, repo: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "ran-on-the-host"
    line = (
        "git config core.fsmonitor 'touch {0}; false'; git config core.hooksPath .evil;"
        "git config diff.external 'touch {0}'; git config core.sshCommand 'touch {0}';"
        "git config filter.evil.clean 'touch {0}; cat'; git config filter.evil.smudge 'touch {0}; cat';"
        "echo '* filter=evil diff=evil' > .gitattributes; git config diff.evil.textconv 'touch {0}; cat';"
        "mkdir .evil; for hook in pre-commit post-commit post-checkout reference-transaction post-index-change; do"
        " printf '#!/bin/sh\\ntouch {0}\\n' > .evil/$hook; chmod +x .evil/$hook; done; cp -r .evil/* .git/hooks/;"
        "echo three > c.txt; echo done"
    ).replace("{0}", str(mark))
    status, report = fault.command(repo, line)
    assert status == 0, report["error"]
    for words in (["diff"], ["apply"], ["show"]):
        assert fault.yard(*words, report["id"]).returncode == 0
    assert not mark.exists()
    assert "+three" in Path(report["patch"]).read_text()


def _with_argument(text: bytes) -> list[bytes]:
    """Return the command lines of processes of this host that contain a text."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found
