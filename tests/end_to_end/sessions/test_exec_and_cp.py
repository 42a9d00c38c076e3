"""`hv exec` and `hv cp`: data arrives completely, or an error is reported."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.end_to_end.sessions.conftest import Stage


def test_a_copy_into_a_session_is_complete_or_fails(stage: Stage, repo: Path, tmp_path: Path) -> None:
    id = stage.prompted(repo)
    os.mkfifo(tmp_path / "pipe")
    refused = stage("cp", str(tmp_path / "pipe"), f"{id}:pipe")
    assert refused.returncode == 2
    assert "neither a file nor a directory" in refused.stderr
    (tmp_path / "directory").mkdir()
    assert stage("exec", id, "--", "sh", "-c", "echo x >file").returncode == 0
    for source, target in ((tmp_path / "directory", "file"), (tmp_path / "directory", "/proc/new"), (repo, "file")):
        refused = stage("cp", str(source), f"{id}:{target}")
        assert refused.returncode == 125, refused
        assert target in refused.stderr


def test_files_that_are_not_copied_out_are_reported(stage: Stage, repo: Path, tmp_path: Path) -> None:
    id = stage.prompted(repo)
    bind = "import socket; socket.socket(socket.AF_UNIX).bind('d/sock')"
    made = stage("exec", id, "--", "sh", "-c", f'mkdir d; echo x >d/file; mkfifo d/pipe; python3 -c "{bind}"')
    assert made.returncode == 0, made.stderr
    done = stage("cp", f"{id}:d", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "2 sockets and devices were left out\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    for name in ("pipe", "sock"):
        refused = stage("cp", f"{id}:d/{name}", str(tmp_path / "one"))
        assert refused.returncode == 125
        assert "nothing was copied" in refused.stderr
        assert not (tmp_path / "one").exists()


def test_a_long_command_arrives_complete_and_one_that_is_not_utf8_is_refused(stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    words = ["word" * 250 + str(number) for number in range(100)]
    done = stage("exec", id, "--", "sh", "-c", 'for word; do echo "$word"; done; cat', "sh", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == words
    given = [*stage.argv("exec", id, "--", "sh", "-c", 'printf "%s:" "$1"; cat', "sh", "an ä and a 'quote'")]
    said = subprocess.run(given, env=stage.env, input="stdin", capture_output=True, text=True, timeout=120)
    assert said.stdout == "an ä and a 'quote':stdin"
    long = stage("exec", id, "--", "echo", *words * 6)
    assert (long.returncode, long.stdout.split()) == (0, words * 6), long.stderr
    argv: list[str | bytes] = [*stage.argv("exec", id, "--", "cat"), b"caf\xe9"]
    refused = subprocess.run(argv, env=stage.env, capture_output=True, timeout=120)
    assert refused.returncode == 2
    assert b"is not UTF-8" in refused.stderr
    assert stage("exec", "nothing", "--", "echo", *words).returncode == 2
