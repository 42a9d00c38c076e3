"""What a session changed, as a person looks at it."""

from __future__ import annotations

from pathlib import Path

from .conftest import Stage


def prompted(stage: Stage, repo: Path) -> str:
    """A session that has done what it was told first."""
    id = stage.spawn(repo, "-m", "remember apples")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    return id


def test_a_stat_only_counts(stage: Stage, repo: Path) -> None:
    id = prompted(stage, repo)
    assert stage("exec", id, "--", "sh", "-c", "echo two >>a.txt").returncode == 0
    done = stage("diff", "--stat", id)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stdout
    assert "+two" not in done.stdout
    assert "+two" in stage("diff", id).stdout
