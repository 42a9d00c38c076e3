"""Work is collected from a repository in which an agent is still at work; the repository does not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.errors import RepositoryError, WouldOverwrite
from hiveyard.repository.git import git_output
from hiveyard.repository.submodules import bare_copy, submodules
from tests.repository.conftest import Repo, Session
from tests.repository.test_collecting import LEFT, begin, end
from tests.repository.test_submodules import BRANCH, CHANGE, inner, lib, whole

__all__ = ["inner", "lib", "whole"]
pytestmark = pytest.mark.anyio


async def aside(session: Session, base: str) -> repository.Collected:
    return await repository.collect(session.guest, session.origin, session.result, base=base, branch=BRANCH, aside=True)


def seen(session: Session) -> dict[str, bytes | str]:
    """Return every file, except new objects, to which nothing points."""
    root = session.shared / "repo"
    found: dict[str, bytes | str] = {}
    for path in sorted(root.rglob("*")):
        if "objects" in path.parts and ".git" in path.parts:
            continue
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file():
            found[str(path)] = path.read_bytes()
    return found


@pytest.mark.parametrize("left", LEFT)
async def test_work_is_collected_from(left: str, repo: Repo, session: Session) -> None:
    """First beside the repository, which does not change, and then as at the end of a session."""
    script, notice = LEFT[left]
    base = await begin(repo, session)
    await session.agent(script)
    beside = await _collect_beside(session, base, usable="unusable" not in notice)
    got = await end(session, base)
    if beside is not None:
        trees = [await git_output("rev-parse", f"{one.head}^{{tree}}", at=session.origin) for one in (beside, got)]
        assert trees[0] == trees[1]
        assert beside[1:6] == got[1:6]
    assert got.commits >= 1
    assert await git_output("merge-base", base, got.head, at=session.origin) == base
    assert (notice in " ".join(got.notices)) if notice else got.notices == ()
    assert await git_output("fsck", "--strict", "--no-dangling", at=session.origin) in (
        "",
        "notice: HEAD points to an unborn branch (main)",
    )
    assert "160000" not in await git_output("diff", "--raw", base, got.head, at=session.origin)


async def _collect_beside(session: Session, base: str, *, usable: bool) -> repository.Collected | None:
    """Check that collecting beside a repository changes nothing in it."""
    before, listed = seen(session), sorted(path.name for path in session.shared.iterdir())
    try:
        got = await aside(session, base)
    except RepositoryError:
        assert not usable, "only what git itself cannot use may fail"
        assert seen(session) == before
        return None
    assert seen(session) == before
    assert sorted(path.name for path in session.shared.iterdir()) == listed
    assert (await aside(session, base)).head == got.head, "the same work has the same name"
    return got


async def test_an_agent_in_the_middle_of_staging_is_not_disturbed(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("echo staged > staged; git add staged; echo more >> staged; touch .git/index.lock")
    got = await aside(session, base)
    assert (got.files, got.leftover) == (1, True)
    assert (session.shared / "repo/.git/index.lock").exists(), "it is somebody's"
    said = await session.agent("rm .git/index.lock; git status --porcelain; git log -1 --format=%s")
    assert said == "AM staged\nSecond\n"


async def test_a_change_with_the_same_time_and_size_is_collected(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent(
        "git config core.trustctime false; cp -p README.md /tmp/then.$$; echo six > README.md;"
        "touch -r /tmp/then.$$ README.md .git/index; rm /tmp/then.$$"
    )
    assert (await aside(session, base)).files == 1


async def test_work_in_submodules_is_collected_and_their_heads_stay(whole: Repo, session: Session) -> None:
    taken = await repository.take(repository.parse_source(str(whole.path)), session.origin)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    await session.agent(CHANGE)
    before = seen(session)
    got = await aside(session, taken.base)
    assert seen(session) == before
    assert got.notices == ()
    deep = submodules(session.origin)[-1]
    copy = bare_copy(session.origin, deep)
    assert await git_output("show", f"{BRANCH}:inner.txt", at=copy) == "3"
    # Each repository records the collected commits of its submodules.
    lib = bare_copy(session.origin, submodules(session.origin)[0])
    assert (await git_output("ls-tree", BRANCH, "deps/inner", at=lib)).split()[2] == await tip(copy)
    assert (await git_output("ls-tree", BRANCH, "vendor/lib", at=session.origin)).split()[2] == await tip(lib)


async def tip(copy: Path) -> str:
    return await git_output("rev-parse", f"refs/heads/{BRANCH}", at=copy)


async def test_an_applied_branch_is_replaced_by_a_later_version_of_the_work(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("echo one > new.txt")
    first = await aside(session, base)
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert repo.git("rev-parse", BRANCH) == first.head
    await session.agent("echo two > new.txt; git add .; git commit -qm New; echo three > more.txt")
    second = await aside(session, base)
    done = await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert (done.head, done.created) == (second.head, False)
    assert repo.git("show", f"{BRANCH}:new.txt") == "two"
    assert repo.git("rev-parse", f"{BRANCH}@{{1}}") == first.head, "and it can be found again"


async def test_a_commit_that_the_user_added_is_never_replaced(repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("echo one > new.txt")
    await aside(session, base)
    await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    repo.git("switch", "-q", BRANCH)
    mine = repo.commit("Mine", mine__txt="mine\n")
    repo.git("switch", "-q", "main")
    await session.agent("echo two > new.txt")
    await aside(session, base)
    with pytest.raises(WouldOverwrite, match="other work"):
        await repository.apply(session.origin, repo.path, base=base, branch=BRANCH)
    assert repo.git("rev-parse", BRANCH) == mine
