"""The command line as a user meets it: a real process and a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Hv
from tests.engine.conftest import git


def test_a_run_ends_with_one_complete_json_object(hv: Hv, repo: Path) -> None:
    done = hv("run", str(repo), "-m", "Say hello!", "--command", "echo hello > hello.txt", "--json")
    assert done.returncode == 0, done.stderr
    report = hv.json("show", "say-hello")
    assert done.stdout.count("\n") == 1
    wanted = {
        "id", "slug", "status", "exit_code", "repo", "branch", "base", "commits", "diffstat", "patch", "provider",
        "tier", "agent", "model", "usage", "timings", "error",
    }  # fmt: skip
    assert wanted <= report.keys()
    assert (report["slug"], report["status"], report["commits"]) == ("say-hello", "completed", 1)
    assert report["diffstat"] == {"files": 1, "insertions": 1, "deletions": 0}
    assert Path(report["patch"]).read_text().count("+hello") == 1
    assert {"clone", "boot", "push", "agent", "collect", "total"} <= report["timings"].keys()


def test_applying_a_branch_does_not_change_the_checkout(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "change", "--command", "echo three > a.txt")
    (repo / "b.txt").write_text("mine, not committed\n")
    applied = hv("apply", "change")
    assert applied.returncode == 0, applied.stderr
    assert git(repo, "show", "hv/change:a.txt") == "three"
    assert (repo / "a.txt").read_text() == "one\n"
    assert (repo / "b.txt").read_text() == "mine, not committed\n"
    git(repo, "branch", "-f", "hv/change", "main")
    git(repo, "commit", "-q", "--allow-empty", "-m", "other")
    git(repo, "branch", "-f", "hv/change", "main")
    refused = hv("apply", "change")
    assert refused.returncode == 2
    assert "hv/change" in refused.stderr
    assert "--branch NAME" in refused.stderr
    elsewhere = hv.json("apply", "change", "--branch", "other")
    assert (elsewhere["branch"], elsewhere["created"]) == ("other", True)
    assert git(repo, "show", "other:a.txt") == "three"


def test_the_same_prompt_twice_gets_two_branches(hv: Hv, repo: Path) -> None:
    for branch in ("hv/change", "hv/change-2"):
        hv("run", str(repo), "-m", "change", "--command", "date +%N > now.txt")
        assert hv.json("apply", "change")["branch"] == branch
        assert hv("rm", "change").returncode == 0
    assert git(repo, "rev-parse", "hv/change") != git(repo, "rev-parse", "hv/change-2")


def test_a_piped_diff_is_a_patch(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "change", "--command", "printf 'x\\0y' > bin; echo three > a.txt")
    patch = subprocess.run(hv.argv("diff", "change"), env=hv.env, capture_output=True).stdout
    subprocess.run(["git", "-C", str(repo), "apply", "--index", "-"], input=patch, check=True)
    assert (repo / "bin").read_bytes() == b"x\0y"


def test_ctrl_c_stops_the_agent_and_keeps_its_work(hv: Hv, repo: Path) -> None:
    run = hv.start("run", str(repo), "-m", "slow", "--command", "echo x > x.txt; echo begun; sleep 600")
    assert run.stdout is not None
    for line in run.stdout:
        if "begun" in line:
            break
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "1 commit" in out
    assert "asking the agent to stop" in err


def test_ctrl_c_twice_leaves_with_the_task_so_far_as_one_object(hv: Hv, repo: Path) -> None:
    command = "trap '' INT; echo begun; sleep 600 & wait; sleep 600"
    run = hv.start("run", str(repo), "-m", "stubborn", "--command", command, "--json")
    assert run.stderr is not None
    for wanted in ("begun", "asking the agent to stop"):
        for line in run.stderr:
            if wanted in line:
                break
        run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    left = json.loads(out)
    assert (left["slug"], left["status"], left["exit_code"]) == ("stubborn", "running", None)
    assert left["id"] in err
    assert hv.json("show", left["id"])["status"] == "running"


def test_ctrl_c_before_the_task_exists_is_one_object_too(own_hv: Hv, repo: Path) -> None:
    own_hv.env["PATH"] = f"{own_hv.home}/bin:{own_hv.env['PATH']}"
    (own_hv.home / "bin").mkdir()
    git = own_hv.home / "bin" / "git"  # a slow git
    git.write_text(f"#!/bin/sh\ntouch {own_hv.home}/asked\nsleep 600\n")
    git.chmod(0o755)
    run = own_hv.start("run", str(repo), "-m", "x", "--command", "true", "--json")
    while not (own_hv.home / "asked").exists():
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "engine.cancelled"
    assert own_hv.json("ps", "-a") == []


def test_a_detached_run_continues_and_can_be_followed(hv: Hv, repo: Path) -> None:
    started = hv("run", str(repo), "-m", "later", "--command", "sleep 1; echo here; echo x > x.txt", "-d")
    id = started.stdout.strip()
    assert [task["id"] for task in hv.json("ps")] == [id]
    followed = hv("logs", "-f", id[:4])
    assert "here" in followed.stdout
    assert "completed" in followed.stdout
    assert hv.json("ps") == []


def test_a_list_can_be_limited_to_the_newest(hv: Hv, repo: Path) -> None:
    for number in range(3):
        hv("run", str(repo), "-m", f"number {number}", "--command", "true")
    assert [task["slug"] for task in hv.json("ps", "-a", "--limit", "2")] == ["number-2", "number-1"]
    refused = hv("ps", "--limit", "0")
    assert refused.returncode == 2
    assert "limit is '0'" in refused.stderr


def test_terminal_escapes_of_an_agent_do_not_reach_the_terminal(hv: Hv, repo: Path) -> None:
    done = hv("run", str(repo), "-m", "escape", "--command", "printf 'a\\033]0;owned\\007b\\033[2Jc\\n'")
    assert "abc" in done.stdout
    assert "\x1b" not in done.stdout
    raw = subprocess.run(hv.argv("events", "--raw", "escape"), env=hv.env, capture_output=True).stdout
    assert raw == b"a\x1b]0;owned\x07b\x1b[2Jc\n"


def test_a_second_daemon_is_refused(hv: Hv) -> None:
    hv.json("ps")
    second = hv("serve")
    assert second.returncode == 125
    assert "another daemon" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_wrong_setting_is_one_line(own_hv: Hv) -> None:
    good = (own_hv.home / "config.toml").read_text()
    (own_hv.home / "config.toml").write_text("[engine]\nmemory = 1\n")
    done = own_hv("ps")
    (own_hv.home / "config.toml").write_text(good)
    assert done.returncode == 2
    assert "no setting 'memory'" in done.stderr
    assert "Traceback" not in done.stderr


IMPOSSIBLE: tuple[tuple[list[str], int, str], ...] = (
    (["run", "/nowhere", "-m", "x"], 2, "/nowhere"),
    (["run", ".", "-m", ""], 2, "empty"),
    (["run", "."], 2, "the prompt is missing"),
    (["run", ".", "-m", "x", "--prompt-file", "y"], 2, "one of them"),
    (["run", ".", "--prompt-file", "/nowhere/prompt"], 2, "/nowhere/prompt"),
    (["run", ".", "-m", "x", "--agent", "clippy"], 2, "clippy"),
    (["run", ".", "-m", "x", "--provider", "vmware"], 2, "vmware"),
    (["run", ".", "-m", "x", "--image", "nope"], 2, "nope"),
    (["run", ".", "-m", "x", "--tape", "/nowhere/tape"], 2, "/nowhere/tape"),
    (["run", "~nobody-of-this-name/x", "-m", "x"], 2, "~nobody-of-this-name/x"),
    (["run", "", "-m", "x"], 2, "empty"),
    (["run", ".", "-m", "x", "--branch", "bad..name"], 2, "bad..name"),
    (["run", ".", "-m", "x", "--base", "nosuch"], 2, "nosuch"),
    (["run", ".", "-m", "x", "--timeout", "soon"], 2, "'soon'"),
    (["run", ".", "-m", "x", "--timeout", "inf"], 2, "'inf' is not a duration"),
    (["run", ".", "-m", "x", "--memory", "1"], 2, "memory_mib is 1"),
    (["run", ".", "-m", "x", "--bugdet", "5"], 2, "--budget"),
    (["show"], 2, "ID"),
    (["show", "nothing"], 2, "nothing"),
    (["dance"], 2, "dance"),
)


def test_bad_input_is_one_clear_line(hv: Hv, repo: Path, subtests: pytest.Subtests) -> None:
    for words, status, complaint in IMPOSSIBLE:
        with subtests.test(words=words):
            done = hv(*[str(repo) if word == "." else word for word in words])
            assert done.returncode == status, done.stderr
            assert complaint in done.stderr
            told = [line for line in done.stderr.splitlines() if not line.startswith("started the daemon")]
            assert [line.split(":")[0] for line in told] in (["error"], ["error", "  try"]), done.stderr
            assert done.stdout == ""
    assert hv.json("ps", "-a") == []


@pytest.mark.parametrize("words", [[], ["image"]])
def test_without_a_verb_the_help_is_printed(hv: Hv, words: list[str]) -> None:
    done = hv(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: hv")


def test_nothing_is_removed_when_one_of_the_names_is_wrong(hv: Hv, repo: Path) -> None:
    for name in ("one", "two"):
        hv("run", str(repo), "-m", name, "--command", "echo x")
    refused = hv("rm", "one", "nosuch", "two")
    assert refused.returncode == 2
    assert "'nosuch'" in refused.stderr
    assert len(hv.json("ps", "-a")) == 2
    one, two = (hv.json("show", name)["id"] for name in ("one", "two"))
    assert hv("rm", "one", "two", one).stdout.split() == [one, two]
    assert hv.json("ps", "-a") == []


def test_a_relative_path_is_resolved_from_the_current_directory(hv: Hv, repo: Path) -> None:
    argv = hv.argv("run", "nosuch", "-m", "x")
    done = subprocess.run(argv, env=hv.env, capture_output=True, text=True, cwd=repo.parent)
    assert done.returncode == 2
    assert f"{repo.parent}/nosuch does not exist" in done.stderr


@pytest.mark.parametrize("home", ["/proc/no-such-place", "/etc/passwd"])
def test_a_home_that_cannot_be_written_is_reported(hv: Hv, home: str) -> None:
    done = subprocess.run(hv.argv("ps"), env={**hv.env, "HIVEYARD_HOME": home}, capture_output=True, text=True)
    assert done.returncode == 125
    assert home in done.stderr
    assert "HIVEYARD_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_too_deep_for_a_socket_is_reported(tmp_path: Path) -> None:
    hv = Hv(tmp_path / ("deep" * 30))
    done = hv("ps")
    assert done.returncode == 125
    assert "socket" in done.stderr
    assert "HIVEYARD_HOME" in done.stderr


# Verbs that print another program's output, or nothing.
SPEAKERS = ("serve", "attach", "exec", "cp")


def test_the_help_has_every_verb_and_verbs_that_print_data_have_json(hv: Hv) -> None:
    from hiveyard.cli.main import cli
    from hiveyard.cli.verbs import VERBS

    text = hv("--help").stdout
    for verb in VERBS:
        assert verb in text
        command = cli.get_command(None, verb)
        assert command is not None
        readers = getattr(command, "commands", {verb: command}).values()
        for reader in readers:
            assert verb in SPEAKERS or any("--json" in option.opts for option in reader.params), reader.name


def test_only_its_owner_can_use_the_api_socket(hv: Hv) -> None:
    hv.json("ps")
    socket = hv.home / "run" / "api.sock"
    assert os.stat(socket).st_mode & 0o777 == 0o600
    assert os.stat(hv.home / "run").st_mode & 0o777 == 0o700
