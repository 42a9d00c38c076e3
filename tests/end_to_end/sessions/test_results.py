"""The work of a session as `hv` shows it."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.sessions.conftest import Stage


def test_diff_stat_shows_counts(stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    assert stage("exec", id, "--", "sh", "-c", "echo two >>a.txt").returncode == 0
    done = stage("diff", "--stat", id)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stdout
    assert "+two" not in done.stdout
    assert "+two" in stage("diff", id).stdout
