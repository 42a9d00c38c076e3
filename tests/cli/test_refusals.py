"""Refusals of wrong and of hostile input: each is one line, and none blocks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hiveyard.api.client import Client, DaemonSilent
from hiveyard.cli import show
from hiveyard.cli.problems import report_errors
from hiveyard.cli.sessions import summary
from tests.cli.conftest import Hv


@pytest.mark.parametrize("option", ["--tape", "--record"])
def test_a_tape_that_is_a_pipe_is_refused_at_once(option: str, hv: Hv, repo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = hv("run", str(repo), "-m", "x", "--command", "true", option, str(tmp_path / "pipe"), timeout=60)
    assert done.returncode == 2
    assert "not a regular file" in done.stderr
    assert hv.json("ps", "-a") == []


def test_a_daemon_that_does_not_answer_is_reported_with_a_hint(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        with pytest.raises(DaemonSilent, match="has not answered for") as told:
            Client(tmp_path / "s").alive(0.1)
    assert told.value.hint.startswith(f"kill {os.getpid()};")
    assert not Client(tmp_path / "s").alive()


@pytest.mark.parametrize(
    "words",
    [
        ("show", b"caf\xe9"),
        ("run", b"/nowhere/caf\xe9", "-m", "x"),
        ("run", ".", "-m", "x", "--command", b"echo \xe9"),
        ("run", "/" + "long" * 100, "-m", "x"),
        ("run", "/" + "long/" * 2000, "-m", "x"),
        ("run", "REPO", "-m", "x", "--command", "true", "--image", "~nouser/x"),
        ("run", "REPO", "-m", "x", "--command", "true", "--image", "long" * 100),
        ("run", "REPO", "-m", "x", "--command", "true", "--image", "./" + "long" * 100),
        ("run", "REPO", "-m", "x", "--command", "true", "--image", "long" * 100 + ".toml"),
        ("image", "build", "long" * 100),
    ],
)
def test_an_impossible_name_is_a_usage_error_in_one_line(hv: Hv, repo: Path, words: tuple[str | bytes]) -> None:
    argv = [*hv.argv(), *(str(repo) if word == "REPO" else word for word in words)]
    done = subprocess.run(argv, env=hv.env, capture_output=True, timeout=120)
    error = done.stderr.decode("utf-8", "replace")
    assert done.returncode == 2, error
    assert "Traceback" not in error and "internal" not in error and "mistake" not in error
    assert hv.json("ps", "-a") == []


def test_a_home_that_is_not_utf8_is_a_usage_error(tmp_path: Path) -> None:
    env = {**os.environb, b"HIVEYARD_HOME": os.fsencode(tmp_path) + b"/caf\xe9"}
    done = subprocess.run([sys.executable, "-m", "hiveyard.cli.main", "ps"], env=env, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: HIVEYARD_HOME is not UTF-8")


def test_a_bug_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken() -> None:
        raise ValueError("two\nlines \x1b[2J")

    assert report_errors(mistaken) == 125
    assert capsys.readouterr().err == "error: hv failed because of a bug: ValueError: two lines\n"


def test_a_recipe_is_resolved_from_the_current_directory(hv: Hv, repo: Path, tmp_path: Path) -> None:
    words = ("run", str(repo), "-m", "x", "--command", "true", "--image", "recipes/mine")
    done = subprocess.run(hv.argv(*words), env=hv.env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert str(tmp_path / "recipes/mine") in done.stderr


def test_an_error_says_what_was_removed_before_it(hv: Hv, repo: Path) -> None:
    over = hv.json("run", str(repo), "-m", "over", "--command", "true")["id"]
    hv("run", str(repo), "-m", "slow", "--command", "sleep 600", "-d")
    error = hv.json("rm", over, "slow")["error"]
    assert error["done"] == [over]
    assert error["code"] == hv.json("rm", "slow")["error"]["code"]
    assert "hv" in error["hint"]


def test_a_dry_run_refuses_a_running_task_as_the_removal_does(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "slow", "--command", "sleep 600", "-d")
    while (task := hv.json("show", "slow"))["status"] != "running":
        assert task["ended_at"] is None
    refused, would = hv("rm", "slow"), hv("rm", "--dry-run", "slow")
    assert (would.returncode, would.stdout, would.stderr) == (125, "", refused.stderr)
    assert hv.json("rm", "--dry-run", "slow") == hv.json("rm", "slow")
    assert hv("rm", "-f", "--dry-run", "slow").stdout == f"{task['id']}  slow, running\n"


def test_terminal_escapes_of_strangers_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b]0;owned\x07b\x1b[2J\nc"
    assert show.plain({"repo": evil, "ports": [{"host": 1}], "turns": 2, "error": None, "in": [evil]}) == {
        "repo": "ab c",
        "ports": [{"host": 1}],
        "turns": 2,
        "error": None,
        "in": ["ab c"],
    }
    usage = dict.fromkeys(("requests", "input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens"), 0)
    session = dict.fromkeys(("name", "id", "status", "reason", "activity", "agent", "model", "repo", "tier"), evil)
    more: dict[str, object] = {
        "error": None,
        "ports": [],
        "turns": 1,
        **dict.fromkeys(("base", "branch", "parent", "provider"), evil),
    }
    summary({**session, **more, "usage": usage | {"cost_usd": 0.0}})
    said = capsys.readouterr().out
    assert "owned" not in said and "[2J" not in said
