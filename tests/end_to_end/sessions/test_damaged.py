"""Sessions with an incomplete directory."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.sessions.conftest import Stage


def test_a_damaged_session_is_not_rewound_and_not_forked(stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    assert stage("snapshot", id, "--name", "early").returncode == 0
    assert stage("exec", id, "--", "sh", "-c", "echo present >a.txt").returncode == 0
    assert stage("stop", id).returncode == 0
    root = stage.home / "data" / "sessions" / id
    (root / "origin.git").rename(root / "away")
    for words in (("rewind", id, "early"), ("fork", id, "--from", "early")):
        refused = stage(*words)
        assert refused.returncode == 125
        assert "origin.git is not a complete repository" in refused.stderr and "hv rm" in refused.stderr
    assert (root / "shared" / "repo" / "a.txt").read_text() == "present\n"
    (root / "away").rename(root / "origin.git")
    done = stage("rewind", id, "early")
    assert (done.returncode, done.stdout) == (0, "remember-apples continues from early\n"), done.stderr
    found = stage.session(id)
    assert (found["status"], found["reason"]) == ("running", "")
    assert (root / "shared" / "repo" / "a.txt").read_text() == "one\n"
