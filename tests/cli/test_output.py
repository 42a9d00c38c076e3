"""The output of `hv`: all output of a command, progress, no color when none is wanted, and how things ended."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Hv


def on_terminal(hv: Hv, *words: str) -> bytes:
    """Run `hv` with a terminal as its stdout and stderr, and return what appeared on it."""
    ours, its = pty.openpty()
    try:
        process = subprocess.Popen(hv.argv(*words), env=hv.env, stdin=subprocess.DEVNULL, stdout=its, stderr=its)
    finally:
        os.close(its)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:
        pass  # EIO: nobody has the other end
    finally:
        os.close(ours)
    process.wait(60)
    return shown


def test_the_output_of_a_command_is_shown_completely(hv: Hv, repo: Path) -> None:
    command = """seq 1 1000; echo '{"a": 1}'; head -c 100000 /dev/zero | tr '\\0' x; echo; echo there >&2"""
    wanted = [*map(str, range(1, 1001)), '{"a": 1}', "x" * 100_000, "there"]
    done = hv("run", str(repo), "-m", "count", "--command", command)
    shown = done.stdout.splitlines()
    start = shown.index("1")
    assert shown[start : start + len(wanted)] == wanted
    logged = hv("logs", "count").stdout.splitlines()
    assert logged[logged.index("1") :][: len(wanted)] == wanted
    raw = hv("events", "count", "--raw").stdout.splitlines()
    assert raw == wanted


def test_a_line_over_the_limit_says_how_much_is_missing(own_hv: Hv, repo: Path) -> None:
    (own_hv.home / "config.toml").write_text((own_hv.home / "config.toml").read_text() + "line_limit_mib = 1\n")
    done = own_hv(
        "run", str(repo), "-m", "long", "--command", "head -c 1100000 /dev/zero | tr '\\0' x; echo; echo last"
    )
    assert "cut after 1048576 bytes, 51424 bytes were left out; engine.line_limit_mib" in done.stdout
    assert "last" in done.stdout.splitlines()


def test_a_failing_command_says_its_last_line(hv: Hv, repo: Path) -> None:
    done = hv("run", str(repo), "-m", "bad", "--command", "echo one; echo two >&2; exit 3")
    assert done.returncode == 1
    assert "ended with exit code 3: two" in done.stdout


def test_raw_output_does_not_hurt_a_terminal(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "escape", "--command", "printf 'a\\033]0;owned\\007b\\033[2Jc\\n'")
    assert on_terminal(hv, "events", "escape", "--raw") == b"abc\r\n"


def test_long_steps_report_their_progress(own_hv: Hv, repo: Path) -> None:
    own_hv.env["PATH"] = f"{own_hv.home}/bin:{own_hv.env['PATH']}"
    (own_hv.home / "bin").mkdir()
    git = own_hv.home / "bin" / "git"
    git.write_text('#!/bin/sh\ncase " $* " in *" clone "*|*" bundle "*|*" index-pack "*) sleep 2.3;; esac\n'
                   'PATH=${PATH#*:} exec git "$@"\n')  # fmt: skip
    git.chmod(0o755)
    begun = time.monotonic()
    done = own_hv("run", str(repo), "-m", "slow", "--command", "echo x > x.txt; echo done")
    assert done.returncode == 0, done.stderr
    taken = time.monotonic() - begun
    said = [event["body"]["message"] for event in own_hv.events("slow") if event["body"]["type"] == "progress"]
    for step in ("copying the repository", "copying the history", "reading the work out of the machine"):
        assert [line for line in said if re.fullmatch(rf"{step}: \d+ kB", line)], said
        assert step in done.stdout
    assert len(said) <= taken / 2 + len({line.partition(":")[0] for line in said}), "one line in two seconds of a step"


def test_no_color_means_no_bold_text_either(hv: Hv) -> None:
    for words in (("ps",), ("show", "nothing"), ("--help",)):
        hv.env.pop("NO_COLOR", None)
        if words != ("--help",):
            assert b"\x1b[" in on_terminal(hv, *words)
        hv.env["NO_COLOR"] = "1"
        assert b"\x1b" not in on_terminal(hv, *words)
        hv.env["NO_COLOR"] = ""
        if words != ("--help",):
            assert b"\x1b[" in on_terminal(hv, *words), "an empty value means nothing"


def test_a_task_that_has_ended_cannot_be_cancelled(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "-m", "over", "--command", "echo done")
    done = hv("cancel", "over")
    assert (done.returncode, done.stdout) == (1, "over has already ended: completed\n")
    assert hv.json("cancel", "over")["status"] == "completed"
    started = hv("run", str(repo), "-m", "at work", "--command", "sleep 600", "-d").stdout.strip()
    done = hv("cancel", started)
    assert (done.returncode, done.stdout) == (0, "at-work: cancelled\n")


def test_a_verbose_daemon_logs_the_commands_that_it_runs(own_hv: Hv, repo: Path) -> None:
    own_hv.env["PYTHONUNBUFFERED"] = "1"
    daemon = own_hv.start("serve", "-v")
    try:
        while not (own_hv.home / "run" / "api.sock").exists():
            assert daemon.poll() is None
            time.sleep(0.05)
        assert own_hv("run", str(repo), "-m", "x", "--command", "echo done").returncode == 0
        for task in own_hv.json("ps", "-a"):
            own_hv("rm", task["id"])
    finally:
        daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate(timeout=60)
    assert re.search(r"DEBUG hiveyard.process pid \d+: git .* clone ", log), log
    assert re.search(r"DEBUG hiveyard.process pid \d+ ended with 0", log)
    assert not [line for line in log.splitlines() if " DEBUG " in line and " hiveyard." not in line]


@pytest.mark.parametrize(("level", "logged"), [("debug", True), ("warning", False)])
def test_a_daemon_that_a_verb_starts_has_the_level_of_the_environment(own_hv: Hv, level: str, logged: bool) -> None:
    own_hv.env["HIVEYARD_LOG_LEVEL"] = level
    own_hv.json("ps")
    log = (own_hv.home / "data" / "daemon.log").read_text()
    assert ("INFO hiveyard.daemon" in log) == logged


def test_a_wrong_log_level_is_refused(own_hv: Hv) -> None:
    own_hv.env["HIVEYARD_LOG_LEVEL"] = "loud"
    for words in (("ps",), ("serve",)):
        done = own_hv(*words)
        assert "HIVEYARD_LOG_LEVEL is 'loud'" in done.stderr and "debug, info" in done.stderr
        assert done.returncode == 2
    del own_hv.env["HIVEYARD_LOG_LEVEL"]
    assert own_hv("serve", "--log-level", "loud").returncode == 2


def test_a_daemon_that_ends_during_exec_is_one_clear_line(own_hv: Hv) -> None:
    (own_hv.home / "run").mkdir()

    def serve(listening: socket.socket) -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                asked = connection.recv(65536)
                if b"/exec" in asked:
                    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    time.sleep(0.2)
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(own_hv.home / "run" / "api.sock"))
        listening.listen()
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        done = own_hv("exec", "-T", "box", "--", "sh", "-c", "sleep 60")
        server.join(10)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "error: the daemon ended before the command did: its exit code is unknown",
        "  try: hv exec -T box -- sh -c 'sleep 60'",
    ]


def test_a_task_that_waits_says_for_what(own_hv: Hv, repo: Path) -> None:
    config = own_hv.home / "config.toml"
    config.write_text(config.read_text().replace("[engine]", "[engine]\nmax_tasks = 1"))
    first, second = (
        own_hv("run", str(repo), "-m", word, "--command", "sleep 600", "--detach").stdout.strip()
        for word in ("one", "two")
    )
    with closing(own_hv.daemon.stream("GET", f"/v1/tasks/{second}/events", follow=True)) as events:  # type: ignore[type-var]
        next(event for event in events if event["body"]["type"] == "notice")
    waits = "number 1 in line: waits for one of the 1 places for tasks"
    assert f"waits     {waits}" in own_hv("show", second).stdout
    assert "number 1 in line" in own_hv("ps").stdout
    assert own_hv("rm", "-f", first, second).returncode == 0
