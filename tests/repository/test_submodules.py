"""Submodules are pushed with their content, and work in them is collected and applied to the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.errors import WouldOverwrite
from hiveyard.repository.git import git_output
from hiveyard.repository.submodules import bare_copy, relative, submodules, take_submodules
from tests.repository.conftest import Repo, Session, init
from tests.repository.test_taking import served

pytestmark = pytest.mark.anyio
BRANCH = "hv/work"
ALLOWED = ("-c", "protocol.file.allow=always")


def add(repo: Repo, other: Repo, path: str) -> None:
    repo.git(*ALLOWED, "submodule", "--quiet", "add", str(other.path), path)
    repo.commit(f"With {path}")


@pytest.fixture
def inner(tmp_path: Path) -> Repo:
    inner = init(tmp_path / "inner")
    inner.commit("Inner 1", inner__txt="1\n")
    inner.commit("Inner 2", inner__txt="2\n")
    return inner


@pytest.fixture
def lib(tmp_path: Path, inner: Repo) -> Repo:
    """A repository with a submodule of its own."""
    lib = init(tmp_path / "lib")
    lib.commit("Lib", lib__py="x = 1\n")
    add(lib, inner, "deps/inner")
    return lib


@pytest.fixture
def whole(repo: Repo, lib: Repo) -> Repo:
    """Two levels of submodules, all of them checked out."""
    add(repo, lib, "vendor/lib")
    repo.git(*ALLOWED, "submodule", "--quiet", "update", "--init", "--recursive")
    return repo


async def begin(repo: Path | str, session: Session) -> repository.Taken:
    taken = await repository.take(repository.parse_source(str(repo)), session.origin)
    await repository.checkout(session.origin, session.shared, base=taken.base, branch=BRANCH)
    return taken


async def end(session: Session, base: str) -> repository.Collected:
    return await repository.collect(session.guest, session.origin, session.result, base=base, branch=BRANCH)


CHANGE = """
echo 'x = 2' > vendor/lib/lib.py
cd vendor/lib; git commit -qam 'Lib is two'; cd deps/inner
echo 3 > inner.txt; printf '\\0\\1' > binary
"""


async def test_submodules_are_checked_out_at_their_recorded_commits(whole: Repo, session: Session) -> None:
    before = whole.snapshot()
    taken = await begin(whole.path, session)
    assert any("vendor/lib, vendor/lib/deps/inner" in notice for notice in taken.notices)
    said = await session.agent(
        "cat vendor/lib/deps/inner/inner.txt; git submodule status --recursive | cut -c1-60; git status --porcelain;"
        "git -C vendor/lib/deps/inner log --format=%s; git -C vendor/lib config user.name"
    )
    expected = [line[:60].rstrip() for line in whole.git("submodule", "status", "--recursive").split("\n")]
    shown = said.split("\n")
    assert (shown[0], shown[3:]) == ("2", ["Inner 2", "Inner 1", "Ada", ""])
    assert [line[1:41] for line in shown[1:3]] == [line.strip()[:40] for line in expected]
    assert whole.snapshot() == before


async def test_work_in_submodules_is_collected_as_commits_that_the_superproject_records(
    whole: Repo, session: Session
) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(CHANGE)
    got = await end(session, base)
    assert got.notices == ()
    outer, nested = submodules(session.origin)
    tip = await git_output("rev-parse", BRANCH, at=bare_copy(session.origin, outer))
    assert await git_output("rev-parse", f"{got.head}:vendor/lib", at=session.origin) == tip
    inmost = bare_copy(session.origin, nested)
    deeper = await git_output("rev-parse", f"{tip}:deps/inner", at=bare_copy(session.origin, outer))
    assert deeper == await git_output("rev-parse", BRANCH, at=inmost)
    assert await git_output("show", f"{deeper}:inner.txt", at=inmost) == "3"
    # lib.py, the inner pointer, inner.txt and binary, and the outer pointer
    assert (got.commits, got.files, got.leftover) == (1, 5, True)
    assert (await end(session, base)).head == got.head


async def test_the_patch_includes_the_work_in_submodules(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(CHANGE)
    got = await end(session, base)
    assert got.patch is not None
    whole.git("apply", "--check", str(got.patch))
    whole.git("apply", str(got.patch))
    assert (whole.path / "vendor/lib/lib.py").read_text() == "x = 2\n"
    assert (whole.path / "vendor/lib/deps/inner/binary").read_bytes() == b"\0\1"


ODD = """
[diff]
submodule = log
ignoreSubmodules = all
noprefix = true
mnemonicPrefix = true
orderFile = /nowhere/order
wordRegex = .
context = 0
interHunkContext = 50
suppressBlankEmpty = true
algorithm = histogram
indentHeuristic = false
renameLimit = 1
[color]
ui = always
[core]
quotePath = false
"""
BLOCK, NUMBERS = "/*\n{}\n*/\n\n", "".join(f"{number}\n" for number in range(20))
MANY_WAYS = {
    "letters__txt": "a\nb\nc\na\nb\nb\na\n",
    "blocks__txt": BLOCK.format(1) + BLOCK.format(3),
    "one__txt": f"1\n{NUMBERS}",
    "two__txt": f"2\n{NUMBERS}",
}
"""Files whose change can be shown in more than one way."""
MANY_WAYS_CHANGE = """
printf '%s\\n' c b a b a c > letters.txt
printf '/*\\n%s\\n*/\\n\\n' 1 2 3 > blocks.txt
for name in one two; do git mv $name.txt moved-$name.txt; echo $name >> moved-$name.txt; done
"""


async def test_the_patch_does_not_depend_on_the_users_configuration(
    whole: Repo, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.commit("Third", **MANY_WAYS)
    base = (await begin(whole.path, session)).base
    await session.agent(MANY_WAYS_CHANGE + CHANGE)
    plain = await end(session, base)
    assert plain.patch is not None
    expected = plain.patch.read_bytes()
    (tmp_path / "odd").write_text(ODD)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "odd"))
    odd = await end(session, base)
    assert odd.patch is not None
    assert (odd.files, odd.patch.read_bytes()) == (plain.files, expected)


async def test_applying_creates_the_branch_in_submodules_and_changes_no_checkout(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(CHANGE)
    await end(session, base)
    done = await repository.apply(session.origin, whole.path, base=base, branch=BRANCH)
    assert whole.git("status", "--porcelain") == ""
    assert whole.git("-C", "vendor/lib", "show", f"{BRANCH}:lib.py") == "x = 2"
    assert any("submodule update" in notice for notice in done.notices)
    again = await repository.apply(session.origin, whole.path, base=base, branch=BRANCH)
    assert not again.created
    whole.git("checkout", "--quiet", BRANCH)
    whole.git("submodule", "--quiet", "update", "--recursive")  # needs no transport
    assert (whole.path / "vendor/lib/deps/inner/inner.txt").read_text() == "3\n"


async def test_nothing_is_applied_when_a_submodule_has_other_work_on_the_branch(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(CHANGE)
    await end(session, base)
    mine = Repo(whole.path / "vendor/lib")
    mine.git("checkout", "--quiet", "-b", BRANCH)
    mine.commit("Mine", mine="x")
    mine.git("checkout", "--quiet", "--detach", "HEAD~1")
    with pytest.raises(WouldOverwrite, match="vendor/lib has a branch"):
        await repository.apply(session.origin, whole.path, base=base, branch=BRANCH)
    assert whole.git("branch", "--list", BRANCH) == ""


async def test_a_notice_says_how_to_get_a_submodule_that_the_clone_lacks(
    whole: Repo, session: Session, tmp_path: Path
) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(CHANGE)
    await end(session, base)
    whole.git("clone", "--quiet", str(whole.path), str(tmp_path / "clone"))
    done = await repository.apply(session.origin, tmp_path / "clone", base=base, branch=BRANCH)
    assert any("submodule update --init --recursive -- vendor/lib," in notice for notice in done.notices)


async def test_submodules_of_a_remote_are_fetched_at_their_commit_by_relative_addresses(
    repo: Repo, lib: Repo, session: Session, tmp_path: Path
) -> None:
    home = tmp_path / "served"
    add(repo, lib, "vendor/lib")
    for one, path, name in ((lib, "deps/inner", "inner"), (repo, "vendor/lib", "lib")):
        one.git("config", "--file", ".gitmodules", f"submodule.{path}.url", f"../{name}.git")
        if one is repo:
            repo.git(*ALLOWED, "-C", "vendor/lib", "pull", "--quiet", "origin", "HEAD")
        one.commit("Relative")
    for one in (repo, lib, Repo(tmp_path / "inner")):
        one.git("clone", "--quiet", "--bare", str(one.path), str(home / f"{one.path.name}.git"))
    async with served(home) as port:
        taken = await begin(f"git://127.0.0.1:{port}/mine.git", session)
    assert any(f"vendor/lib from git://127.0.0.1:{port}/lib.git" in notice for notice in taken.notices), taken
    said = await session.agent("git -C vendor/lib rev-list --count HEAD; cat vendor/lib/deps/inner/inner.txt")
    assert said == "1\n2\n"
    # Work on a shallow copy can be applied to the full repository.
    await session.agent(CHANGE)
    await end(session, taken.base)
    repo.git(*ALLOWED, "-c", f"url.{home}/.insteadOf=git://", "submodule", "--quiet", "update", "--init")
    await repository.apply(session.origin, repo.path, base=taken.base, branch=BRANCH)
    mine = Repo(repo.path / "vendor/lib")
    assert mine.git("show", f"{BRANCH}:lib.py") == "x = 2"
    assert int(mine.git("rev-list", "--count", BRANCH)) > 2
    assert not Path(mine.git("rev-parse", "--git-path", "shallow")).exists()


async def test_a_submodule_that_is_not_checked_out_is_taken_from_the_git_directory(
    whole: Repo, session: Session
) -> None:
    whole.git("submodule", "--quiet", "deinit", "--force", "vendor/lib")
    taken = await begin(whole.path, session)
    assert not any("left out" in notice for notice in taken.notices)
    assert await session.agent("cat vendor/lib/lib.py") == "x = 1\n"


async def test_uncommitted_changes_in_a_submodule_are_left_out_and_reported(whole: Repo, session: Session) -> None:
    (whole.path / "vendor/lib/lib.py").write_text("mine\n")
    taken = await begin(whole.path, session)
    assert any("uncommitted changes in submodules were left out: vendor/lib" in notice for notice in taken.notices)
    assert await session.agent("cat vendor/lib/lib.py") == "x = 1\n"


async def test_lfs_pointers_in_a_submodule_stay_pointers(whole: Repo, session: Session) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    lib = Repo(whole.path / "vendor/lib")
    lib.commit("Large", __gitattributes="*.bin filter=lfs diff=lfs merge=lfs -text\n", a__bin=pointer)
    whole.commit("Newer lib")
    base = (await begin(whole.path, session)).base
    assert await session.agent("cat vendor/lib/a.bin") == pointer
    await session.agent("echo y > vendor/lib/lib.py")
    got = await end(session, base)
    tip = await git_output("rev-parse", f"{got.head}:vendor/lib", at=session.origin)
    copy = bare_copy(session.origin, submodules(session.origin)[0])
    assert await git_output("show", f"{tip}:a.bin", at=copy) == pointer.strip()


LEFT = {
    "no git directory of its own any more": "rm -rf .git/modules/vendor/lib",
    "no git directory at all": "rm -rf .git",
    "a broken index": "echo x > .git/modules/vendor/lib/index",
    "a broken repository around it": "rm .git/HEAD",
    "a repository made anew in its place": "cd vendor/lib; rm .git; git init -q; git add lib.py; $commit",
    "cut off from its repository": "rm vendor/lib/.git",
    "a lock": "touch .git/modules/vendor/lib/index.lock",
    "a branch of its own": "cd vendor/lib; git switch -qc mine; git commit -qam x",
    "history made anew": "cd vendor/lib; git checkout -q --orphan a; git commit -qam x",
    "ignored by the repository around it": "git config -f .gitmodules submodule.vendor/lib.ignore all",
}


@pytest.mark.parametrize("left", LEFT)
async def test_work_in_a_submodule_is_collected_from(left: str, whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    commit = "commit='git -c user.name=A -c user.email=a@b commit -qm x'\n"
    await session.agent(f"{commit}echo 'x = 2' > vendor/lib/lib.py; echo more >> README.md\n{LEFT[left]}")
    got = await end(session, base)
    assert await git_output("show", f"{got.head}:README.md", at=session.origin) == "two\nmore"
    tip = await git_output("rev-parse", f"{got.head}:vendor/lib", at=session.origin)
    copy = bare_copy(session.origin, submodules(session.origin)[0])
    assert await git_output("show", f"{tip}:lib.py", at=copy) == "x = 2"


async def test_a_submodule_that_became_a_plain_directory_is_collected_as_files(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(
        "git rm -q --cached vendor/lib; rm -rf vendor/lib/.git vendor/lib/deps; git add vendor/lib;"
        "echo 'x = 2' > vendor/lib/lib.py"
    )
    got = await end(session, base)
    assert await git_output("show", f"{got.head}:vendor/lib/lib.py", at=session.origin) == "x = 2"


async def test_of_a_new_submodule_only_the_commit_is_collected(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(
        "git init -q new; git -C new -c user.name=A -c user.email=a@b commit -q --allow-empty -m x;"
        "git submodule --quiet add ./new new"
    )
    got = await end(session, base)
    assert any("submodule new: only its commit" in notice for notice in got.notices), got.notices


async def test_a_forged_submodule_is_reported_and_the_rest_is_collected(whole: Repo, session: Session) -> None:
    base = (await begin(whole.path, session)).base
    await session.agent(
        "echo more >> README.md; cd vendor/lib; b=$(printf x | git hash-object -w --stdin);"
        "t=$(printf '100644 blob %s\\t.git\\n' $b | git mktree);"
        "git update-ref HEAD $(git commit-tree $t -p HEAD -m x)"
    )
    got = await end(session, base)
    assert any("vendor/lib was not collected" in notice for notice in got.notices), got.notices
    assert any("which was not collected" in notice for notice in got.notices)
    assert await git_output("show", f"{got.head}:README.md", at=session.origin) == "two\nmore"


# --- a hostile .gitmodules ------------------------------------------------------------------------------------------


def point(repo: Repo, path: str, commit: str, entry: str) -> None:
    """Commit a submodule entry that git itself would refuse."""
    repo.write(".gitmodules", entry)
    repo.git("add", ".gitmodules")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    repo.git("commit", "--quiet", "-m", "Hostile")


@pytest.fixture
def private(tmp_path: Path) -> Repo:
    """A private repository on this host."""
    private = init(tmp_path / "private")
    private.commit("Secret", secret="key")
    return private


ADDRESSES = ["{path}", "file://{path}", "../private", "./../private", "ext::sh -c touch% {mark}"]


@pytest.mark.parametrize("address", ADDRESSES)
async def test_an_address_in_gitmodules_cannot_read_a_repository_of_this_host(
    address: str, repo: Repo, private: Repo, session: Session, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    url = address.format(path=private.path, mark=mark)
    point(repo, "x", private.git("rev-parse", "HEAD"), f'[submodule "x"]\n\tpath = x\n\turl = "{url}"\n')
    repo.git("remote", "add", "origin", str(repo.path))
    taken = await begin(repo.path, session)
    assert any("were not taken" in notice and "x:" in notice for notice in taken.notices), taken.notices
    assert submodules(session.origin) == []
    assert await session.agent("ls x") == ""
    assert not mark.exists()


async def test_a_path_is_used_if_the_users_configuration_allows_it(
    repo: Repo, private: Repo, session: Session, tmp_path: Path
) -> None:
    point(repo, "x", private.git("rev-parse", "HEAD"), f'[submodule "x"]\n\tpath = x\n\turl = {private.path}\n')
    private.git("config", "--global", "protocol.file.allow", "always")
    await begin(repo.path, session)
    assert await session.agent("cat x/secret") == "key"


@pytest.mark.parametrize("url", ["-u./payload", "--upload-pack=touch ran", "ssh://-oProxyCommand=touch ran/x"])
async def test_an_address_is_never_an_option(url: str, repo: Repo, session: Session) -> None:
    point(repo, "x", "1" * 40, f'[submodule "x"]\n\tpath = x\n\turl = "{url}"\n')
    taken = await begin(repo.path, session)
    assert any("is not an address" in notice for notice in taken.notices), taken.notices


@pytest.mark.parametrize("name", ["../../escape", "..", "-x", "a/../../b", "/abs", ".git", "a\\\\..\\\\b"])
async def test_a_submodule_name_never_leads_outside(name: str, repo: Repo, private: Repo, session: Session) -> None:
    private.git("config", "--global", "protocol.file.allow", "always")
    point(repo, "x", private.git("rev-parse", "HEAD"), f'[submodule "{name}"]\n\tpath = x\n\turl = {private.path}\n')
    taken = await begin(repo.path, session)
    assert submodules(session.origin) == []
    assert any("its path or its name is not allowed" in notice for notice in taken.notices), taken.notices
    assert sorted(path.name for path in session.root.iterdir()) == ["home", "origin.git", "shared"]


async def test_a_submodule_name_that_collides_with_another_is_left_out(
    repo: Repo, private: Repo, session: Session
) -> None:
    private.git("config", "--global", "protocol.file.allow", "always")
    head = private.git("rev-parse", "HEAD")
    entry = '[submodule "{0}"]\n\tpath = {1}\n\turl = ' + str(private.path) + "\n"
    point(repo, "x", head, entry.format("a", "x"))
    point(repo, "y", head, entry.format("a", "x") + entry.format("a/hooks", "y"))
    taken = await begin(repo.path, session)
    assert [one.path for one in submodules(session.origin)] == ["x"]
    assert any("collides" in notice for notice in taken.notices)


async def test_a_symlink_in_the_path_of_a_submodule_is_not_followed(
    repo: Repo, private: Repo, session: Session
) -> None:
    """The work tree has a symlink to the user's other repositories where the base has a directory."""
    point(repo, "v/private", private.git("rev-parse", "HEAD"), '[submodule "p"]\n\tpath = v/private\n\turl = ""\n')
    base = repo.git("rev-parse", "HEAD")
    repo.git("rm", "--quiet", "--cached", "v/private")
    (repo.path / "v").symlink_to(private.path.parent)
    repo.commit("A link")
    await repository.take(repository.parse_source(str(repo.path)), session.origin, base=base)
    assert submodules(session.origin) == []


async def test_a_submodule_that_is_too_large_is_left_out(repo: Repo, private: Repo, session: Session) -> None:
    (private.path / "large").write_bytes(os.urandom(3 << 20))
    private.commit("Large")
    private.git("config", "--global", "protocol.file.allow", "always")
    point(repo, "x", private.git("rev-parse", "HEAD"), f'[submodule "x"]\n\tpath = x\n\turl = file://{private.path}\n')
    taken = await repository.take(repository.parse_source(str(repo.path)), session.origin)
    assert len(submodules(session.origin)) == 1
    said = await take_submodules(session.origin, taken.base, local=repo.path, address="", max_size=1 << 20)
    assert "larger than 1 MiB" in said[0]
    assert submodules(session.origin) == []


@pytest.mark.long("storms")  # it writes 300 MiB, and git reads them
async def test_a_submodule_that_takes_too_much_memory_is_left_out(repo: Repo, private: Repo, session: Session) -> None:
    told = private.path.parent / "message"
    told.write_text("x" * (300 << 20))
    private.git("commit", "--quiet", "--allow-empty", "--file", str(told))
    private.git("config", "--global", "protocol.file.allow", "always")
    point(repo, "x", private.git("rev-parse", "HEAD"), f'[submodule "x"]\n\tpath = x\n\turl = file://{private.path}\n')
    taken = await repository.take(repository.parse_source(str(repo.path)), session.origin)
    assert len(submodules(session.origin)) == 1
    said = await take_submodules(session.origin, taken.base, local=repo.path, address="", memory=128 << 20)
    assert "memory" in said[0]
    assert submodules(session.origin) == []


@pytest.mark.parametrize(
    ("base", "url", "expected"),
    [
        ("https://example.com/a/b.git", "../c.git", "https://example.com/a/c.git"),
        ("https://example.com/a/b.git/", "../../c.git", "https://example.com/c.git"),
        ("git@example.com:a/b.git", "../c.git", "git@example.com:a/c.git"),
        ("git@example.com:b.git", "../c.git", "git@example.com:c.git"),
        ("https://example.com/a", "./c", "https://example.com/a/c"),
        ("/srv/git/a", "../b", "/srv/git/b"),
    ],
)
def test_a_relative_address_is_resolved_as_git_does(base: str, url: str, expected: str) -> None:
    assert relative(base, url) == expected
