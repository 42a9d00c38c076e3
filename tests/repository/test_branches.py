"""A session's branch never collides with the user's branches."""

from __future__ import annotations

import pytest

from hiveyard import repository
from hiveyard.core.errors import BranchExists
from hiveyard.repository.submodules import bare_copy, submodules
from tests.repository.conftest import Repo, Session
from tests.repository.test_submodules import CHANGE, inner, lib, whole

__all__ = ["inner", "lib", "whole"]
pytestmark = pytest.mark.anyio
BRANCH = "hv/work"


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ([], "hv/work"),
        (["main", "work", "hv/workshop", "hv-work"], "hv/work"),
        (["hv/work"], "hv/work-2"),
        (["hv/work", "hv/work-2", "hv/work-4"], "hv/work-3"),
        ([f"{BRANCH}/deeper"], "hv/work-2"),
        (["hv"], "hv-work"),
        (["hv", "hv-work"], "hv-work-2"),
        (["hv", "hv-work/deeper"], "hv-work-2"),
    ],
)
def test_a_branch_gets_a_name_that_is_free(taken: list[str], name: str) -> None:
    assert repository.branch_name("work", taken) == name


async def test_branch_names_in_submodules_count_as_taken(whole: Repo, session: Session) -> None:
    Repo(whole.path / "vendor/lib").git("branch", "hv/theirs")
    whole.git("branch", "hv/mine")
    await repository.take(repository.parse_source(str(whole.path)), session.origin)
    assert await repository.heads(session.origin) >= {"hv/theirs", "hv/mine", "main"}


async def worked(repo: Repo, session: Session, script: str) -> repository.Collected:
    taken = await repository.take(repository.parse_source(str(repo.path)), session.origin)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    await session.agent(script)
    return await repository.collect(session.guest, session.origin, session.result, base=taken.base, branch=BRANCH)


@pytest.mark.parametrize("theirs", ["hv", f"{BRANCH}/deeper"])
async def test_work_is_kept_when_its_branch_name_collides(theirs: str, repo: Repo, session: Session) -> None:
    repo.git("branch", "-m", "main", theirs)
    got = await worked(repo, session, "echo more >> README.md")
    assert (got.commits, got.notices) == (1, ())
    base = repo.git("rev-parse", "HEAD")
    with pytest.raises(BranchExists, match=f"has a branch {theirs}"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH, name="elsewhere")
    assert repo.git("show", "elsewhere:README.md") == "two\nmore"
    assert repo.git("branch", "--format=%(refname:short)").split() == ["elsewhere", theirs]


async def test_work_in_a_submodule_is_kept_when_its_branch_name_collides(whole: Repo, session: Session) -> None:
    Repo(whole.path / "vendor/lib").git("branch", "hv")
    base = whole.git("rev-parse", "HEAD")
    got = await worked(whole, session, CHANGE)
    assert got.notices == ()
    copy = Repo(bare_copy(session.origin, submodules(session.origin)[0]))
    assert copy.git("show", f"{BRANCH}:lib.py") == "x = 2"
    with pytest.raises(BranchExists, match="vendor/lib has a branch hv"):
        await repository.apply(session.origin, whole.path, base=base, branch=BRANCH)
    assert whole.git("branch", "--list", BRANCH) == ""


async def test_work_without_a_patch_is_kept(repo: Repo, session: Session) -> None:
    taken = await repository.take(repository.parse_source(str(repo.path)), session.origin)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    await session.agent("yes '' | head -c 900000 > lines")
    got = await repository.collect(
        session.guest, session.origin, session.result, base=taken.base, branch=BRANCH, limit=1 << 20
    )
    assert (got.commits, got.insertions, got.patch) == (1, 900000, None)
    assert "no patch" in " ".join(got.notices)
    done = await repository.apply(session.origin, repo.path, base=taken.base, branch=BRANCH)
    assert done.head == got.head
