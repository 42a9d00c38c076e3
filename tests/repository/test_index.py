"""A settled index: git trusts it, and still sees each change that comes after."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.core.errors import RepositoryError
from hiveyard.repository.index import VERSION_2, settle

from .conftest import Repo, init

ODD = ("a b", "ü", '"', "x" * 200, "deep/er/file", "-f")


@pytest.fixture(params=["sha1", "sha256"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settled(tmp_path: Path, kind: str) -> Repo:
    repo = init(tmp_path / "mine", f"--object-format={kind}")
    for name in ODD:
        repo.write(name, "one\n")
    (repo.path / "link").symlink_to("a b")
    repo.git("config", "core.checkStat", "minimal")
    repo.git("config", "core.trustctime", "false")
    repo.git(*VERSION_2, "add", "--all")
    repo.git("commit", "-qm", "All")
    repo.git(*VERSION_2, "reset", "-q", "--hard")
    settle(repo.path / ".git" / "index", repo.path, kind)
    return repo


def test_it_is_valid_and_older_than_no_file(settled: Repo) -> None:
    assert settled.git("status", "--porcelain") == ""
    assert settled.git("fsck", "--strict") == ""
    index = int((settled.path / ".git" / "index").stat().st_mtime)
    for name in (*ODD, "link"):
        assert int((settled.path / name).lstat().st_mtime) < index


@pytest.mark.parametrize("name", ODD)
def test_a_change_of_the_same_size_in_the_same_second_is_seen(settled: Repo, name: str) -> None:
    settled.write(name, "two\n")
    assert settled.git("-c", "core.quotePath=false", "diff", "--name-only", "-z") == f"{name}\0"


def test_an_index_of_another_version_is_refused(settled: Repo, kind: str) -> None:
    settled.git("update-index", "--index-version", "4")
    with pytest.raises(RepositoryError, match="not an index of version 2"):
        settle(settled.path / ".git" / "index", settled.path, kind)
