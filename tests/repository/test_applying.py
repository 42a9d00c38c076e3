"""Finished work comes into a person's repository, and nothing of theirs is lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.errors import NoRepository, NothingToApply, RepositoryError, WouldOverwrite
from hiveyard.repository.git import answer
from tests.repository.conftest import Repo, Session, init

pytestmark = pytest.mark.anyio
BRANCH = "hv/work"


async def worked(repo: Repo, session: Session, script: str, *, dirty: bool = False) -> str:
    """Have an agent do `script`; returns the base."""
    source = repository.parse_source(str(repo.path))
    taken = await repository.take(source, session.origin, include_dirty=dirty)
    await repository.push(session.guest, session.origin, session.shared, base=taken.base, branch=BRANCH)
    await session.agent(script)
    await repository.collect(session.guest, session.origin, session.result, base=taken.base, branch=BRANCH)
    return taken.base


async def test_applying_makes_the_branch_and_touches_nothing_else(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.write("README.md", "dirty\n")
    repo.write("new", "x")
    repo.git("add", "new")
    status, head = repo.git("status", "--porcelain"), repo.git("rev-parse", "HEAD")
    done = await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert (done.created, done.merged) == (True, False)
    assert repo.git("show", f"{BRANCH}:README.md") == "two\nmore"
    assert (repo.git("status", "--porcelain"), repo.git("rev-parse", "HEAD")) == (status, head)


async def test_applying_twice_is_once(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    again = await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert not again.created


async def test_a_branch_with_other_work_is_not_overwritten(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.git("checkout", "--quiet", "-b", BRANCH)
    mine = repo.commit("Mine", mine="x")
    repo.git("checkout", "--quiet", "main")
    with pytest.raises(WouldOverwrite, match="other work"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert repo.git("rev-parse", BRANCH) == mine
    other = await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, name="theirs")
    assert repo.git("rev-parse", "theirs") == other.head


async def test_a_branch_that_is_checked_out_is_not_moved(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.git("checkout", "--quiet", "-b", BRANCH)
    with pytest.raises(WouldOverwrite, match="checked out"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)


async def test_merging_moves_the_checkout_forward(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    done = await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)
    assert done.merged
    assert (repo.path / "README.md").read_text() == "two\nmore\n"


async def test_merging_never_overwrites_uncommitted_work(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.write("README.md", "mine\n")
    with pytest.raises(WouldOverwrite, match="uncommitted"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)
    assert (repo.path / "README.md").read_text() == "mine\n"
    assert repo.git("rev-parse", "HEAD") == base


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        pytest.param("echo agent > .env; git add -f .env", ".env", id="a file"),
        pytest.param("echo agent > .env; git add -f .env", ".env/inner", id="a directory"),
        pytest.param("mkdir .env; echo agent > .env/inner; git add -f .env", ".env", id="a file where theirs are"),
    ],
)
async def test_merging_never_overwrites_what_git_ignores(repo: Repo, session: Session, theirs: str, mine: str) -> None:
    repo.commit("Ignore", __gitignore=".env\n")
    base = await worked(repo, session, f"{theirs}; git commit -qm 'Settings'")
    repo.write(mine, "mine\n")
    with pytest.raises(WouldOverwrite, match=r"in no commit: \.env"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)
    assert (repo.path / mine).read_text() == "mine\n"
    assert repo.git("rev-parse", "HEAD") == base


async def test_merging_into_what_went_on_since_is_left_to_the_person(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.commit("Mine", mine="x")
    with pytest.raises(WouldOverwrite, match="gone on since"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)


async def test_no_commits_are_nothing_to_apply(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "true")
    with pytest.raises(NothingToApply):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)


async def test_work_on_uncommitted_changes_can_be_applied(repo: Repo, session: Session) -> None:
    repo.write("README.md", "dirty\n")
    base = await worked(repo, session, "echo more >> README.md", dirty=True)
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert repo.git("show", f"{BRANCH}:README.md") == "dirty\nmore"


@pytest.mark.parametrize("bare", [False, True])
async def test_a_person_whose_git_looks_for_no_bare_repositories_is_served_too(
    bare: bool, repo: Repo, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bare:
        repo.git("clone", "--quiet", "--bare", str(repo.path), str(tmp_path / "bare"))
    mine = Repo(tmp_path / "bare") if bare else repo
    careful = tmp_path / "careful"
    careful.write_text("[user]\n\tname = Ada\n\temail = ada@example.com\n[safe]\n\tbareRepository = explicit\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(careful))
    base = await worked(mine, session, "echo more >> README.md")
    done = await repository.apply(session.origin, mine.path, base=base, branch=BRANCH, merge=not bare)
    shown = await answer("show", f"{BRANCH}:README.md", at=mine.path)
    assert (shown, done.created, done.merged) == ("two\nmore", True, not bare)


async def test_another_clone_can_take_the_work_and_a_stranger_cannot(
    repo: Repo, session: Session, tmp_path: Path
) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.git("clone", "--quiet", "--bare", str(repo.path), str(tmp_path / "clone"))
    await repository.apply(session.origin, tmp_path / "clone", base=base, branch=BRANCH)
    stranger = init(tmp_path / "stranger")
    stranger.commit("Elsewhere", a="x")
    with pytest.raises(RepositoryError, match="another repository"):
        await repository.apply(session.origin, stranger.path, base=base, branch=BRANCH)
    with pytest.raises(NoRepository):
        await repository.apply(session.origin, tmp_path, base=base, branch=BRANCH)
