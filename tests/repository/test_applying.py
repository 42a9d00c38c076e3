"""Applying the result to the user's repository loses none of their work."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.errors import NoRepository, NothingToApply, RepositoryError, WouldOverwrite
from hiveyard.repository.git import git_output
from tests.repository.conftest import Repo, Session, init

pytestmark = pytest.mark.anyio
BRANCH = "hv/work"


async def worked(repo: Repo, session: Session, script: str, *, dirty: bool = False) -> str:
    """Run `script` as an agent and collect the work; return the base."""
    source = repository.parse_source(str(repo.path))
    taken = await repository.take(source, session.origin, include_dirty=dirty)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    await session.agent(script)
    await repository.collect(session.guest, session.origin, session.result, base=taken.base, branch=BRANCH)
    return taken.base


async def test_applying_creates_the_branch_and_changes_nothing_else(repo: Repo, session: Session) -> None:
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


async def test_merging_fast_forwards_the_checkout(repo: Repo, session: Session) -> None:
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
async def test_merging_never_overwrites_ignored_files(repo: Repo, session: Session, theirs: str, mine: str) -> None:
    repo.commit("Ignore", __gitignore=".env\n")
    base = await worked(repo, session, f"{theirs}; git commit -qm 'Settings'")
    repo.write(mine, "mine\n")
    with pytest.raises(WouldOverwrite, match=r"untracked files in .*: \.env"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)
    assert (repo.path / mine).read_text() == "mine\n"
    assert repo.git("rev-parse", "HEAD") == base


async def test_merging_into_a_diverged_branch_is_refused(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "echo more >> README.md")
    repo.commit("Mine", mine="x")
    with pytest.raises(WouldOverwrite, match="has diverged"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, merge=True)


async def test_applying_without_commits_is_refused(repo: Repo, session: Session) -> None:
    base = await worked(repo, session, "true")
    with pytest.raises(NothingToApply):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)


async def test_work_on_uncommitted_changes_can_be_applied(repo: Repo, session: Session) -> None:
    repo.write("README.md", "dirty\n")
    base = await worked(repo, session, "echo more >> README.md", dirty=True)
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert repo.git("show", f"{BRANCH}:README.md") == "dirty\nmore"


@pytest.mark.parametrize("bare", [False, True])
async def test_a_git_that_forbids_bare_repositories_can_be_used(
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
    shown = await git_output("show", f"{BRANCH}:README.md", at=mine.path)
    assert (shown, done.created, done.merged) == ("two\nmore", True, not bare)


async def test_work_can_be_applied_to_a_clone_but_not_to_an_unrelated_repository(
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
