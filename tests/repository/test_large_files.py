"""A file above a size is reported and left out of the result, however large it is."""

from __future__ import annotations

import anyio
import pytest

from hiveyard import repository
from hiveyard.repository.git import git_output
from hiveyard.repository.submodules import bare_copy, submodules
from tests.repository.conftest import Repo, Session
from tests.repository.test_collecting import BRANCH, begin, names
from tests.repository.test_submodules import inner, lib, whole

__all__ = ["inner", "lib", "whole"]
pytestmark = pytest.mark.anyio
MIB = 1 << 20
BOTH = pytest.mark.parametrize("aside", [False, True], ids=["ended", "at work"])


async def collect(session: Session, base: str, *, aside: bool, largest: int = MIB) -> repository.Collected:
    places = session.origin, session.result
    with anyio.fail_after(60):
        return await repository.collect(session.guest, *places, base=base, branch=BRANCH, largest=largest, aside=aside)


@BOTH
async def test_a_sparse_file_of_a_terabyte_is_reported_and_left_out(aside: bool, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("truncate -s 1T s.bin; echo x > x")
    got = await collect(session, base, aside=aside, largest=512 * MIB)
    assert got.notices == ("a file of more than 512 MiB left out of the result: s.bin (1048576 MiB)",)
    assert await names(session, got.head) == ["README.md", "app.py", "x"]
    assert (session.shared / "repo/s.bin").stat().st_size == 1 << 40


@BOTH
async def test_a_large_file_alone_makes_no_commit_and_is_reported(aside: bool, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("truncate -s 1T s.bin")
    got = await collect(session, base, aside=aside)
    assert (got.head, got.commits) == (base, 0)
    assert "s.bin" in got.notices[0]


@BOTH
@pytest.mark.parametrize("name", ["README.md", "empty"])
async def test_a_file_of_the_base_that_grew_keeps_its_former_content(
    name: str, aside: bool, repo: Repo, session: Session
) -> None:
    repo.commit("Empty", empty="")
    base = await begin(repo, session)
    # Git stores 32 bits of a size: with the same time, it would compare the content with that of the empty file.
    await session.agent(f"truncate -s 1T {name}; touch -d @1900000000 {name}; rm app.py; echo x > x")
    got = await collect(session, base, aside=aside)
    assert name in got.notices[0]
    assert await names(session, got.head) == sorted(["README.md", "empty", "x"])
    assert await git_output("rev-parse", f"{got.head}:{name}", at=session.origin) == repo.git(
        "rev-parse", f"HEAD:{name}"
    )


@BOTH
async def test_a_large_file_that_is_staged_is_left_out(aside: bool, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent("truncate -s 3M s.bin README.md; echo x > x; git add .; git add -N x")
    got = await collect(session, base, aside=aside)
    assert "2 files of more than 1 MiB" in got.notices[0]
    assert await names(session, got.head) == ["README.md", "app.py", "x"]
    assert await git_output("show", f"{got.head}:README.md", at=session.origin) == "two"


@BOTH
async def test_a_file_of_the_size_itself_and_one_that_git_ignores_are_not_reported(
    aside: bool, repo: Repo, session: Session
) -> None:
    repo.commit("Ignore", __gitignore="*.log\n")
    base = await begin(repo, session)
    await session.agent("truncate -s 1M s.bin; truncate -s 1T a.log; ln -s a.log link")
    got = await collect(session, base, aside=aside)
    assert got.notices == ()
    assert await names(session, got.head) == [".gitignore", "README.md", "app.py", "link", "s.bin"]


@BOTH
async def test_large_files_in_submodules_are_left_out(aside: bool, whole: Repo, session: Session) -> None:
    base = await begin(whole, session)
    await session.agent("truncate -s 1T vendor/lib/lib.py vendor/lib/deps/inner/new; echo x > vendor/lib/x; echo x > x")
    got = await collect(session, base, aside=aside)
    assert [notice.partition(":")[0] for notice in got.notices] == [
        "submodule vendor/lib/deps/inner",
        "submodule vendor/lib",
    ]
    assert got.files == 3, "two files and the commit of the submodule"
    copy = bare_copy(session.origin, submodules(session.origin)[0])
    assert await git_output("show", f"{BRANCH}:lib.py", at=copy) == "x = 1"


@BOTH
async def test_a_large_file_in_a_repository_inside_the_repository_is_left_out(
    aside: bool, repo: Repo, session: Session
) -> None:
    base = await begin(repo, session)
    await session.agent("git init -q deep; echo x > deep/x; truncate -s 1T deep/s.bin")
    got = await collect(session, base, aside=aside)
    assert "deep/s.bin" in " ".join(got.notices)
    assert await names(session, got.head) == ["README.md", "app.py", "deep/x"]


@BOTH
async def test_names_of_all_kinds_are_left_out_and_are_one_line(aside: bool, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    odd = [r"$'a\nb'", r"$'\e[31mred'", "-c", "'*'", "':(top)x'", "'[x]$(id)'", "'@'", r"$'\xff'", "' '"]
    await session.agent(f"mkdir '/session/repo/d '; truncate -s 1T -- {' '.join(odd)} 'd /x'; echo x > 'x*'; echo > xc")
    got = await collect(session, base, aside=aside)
    assert await names(session, got.head) == ["README.md", "app.py", "x*", "xc"]
    (notice,) = got.notices
    assert notice.isprintable()
    assert "10 files" in notice and "a b (1048576 MiB)" in notice


@BOTH
async def test_thousands_of_large_files_are_one_short_notice(aside: bool, repo: Repo, session: Session) -> None:
    base = await begin(repo, session)
    await session.agent(
        "n=$(printf 'n%.0s' {1..200}); mkdir $n; cd $n; for i in {1..3000}; do echo $n$i; done | xargs truncate -s 1T;"
        "echo x > x"
    )
    got = await collect(session, base, aside=aside)
    (notice,) = got.notices
    assert "3000 files" in notice and notice.endswith("and 2990 more")
    assert len(notice) < 2000
    assert got.files == 1
