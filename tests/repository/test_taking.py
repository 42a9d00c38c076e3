"""Taking a repository: the source, the base, and the bare copy on the host."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hiveyard import repository
from hiveyard.core.errors import BadInput, BranchExists, EmptyRepository, NoRepository, UnknownRevision
from hiveyard.kit.process import running
from hiveyard.repository.git import git_output
from tests.repository.conftest import Repo, Session, init

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("text", "path", "url"),
    [
        ("mine", "/here/mine", None),
        (".", "/here", None),
        ("/abs/mine", "/abs/mine", None),
        ("file:///abs/my%20repo", "/abs/my repo", None),
        ("https://example.com/a/b.git", None, "https://example.com/a/b.git"),
        ("ssh://git@example.com/a", None, "ssh://git@example.com/a"),
        ("git@example.com:a/b.git", None, "git@example.com:a/b.git"),
        ("pallets/flask", None, "https://github.com/pallets/flask.git"),
        ("./pallets/flask", "/here/pallets/flask", None),
        ("a/b/c", "/here/a/b/c", None),
    ],
)
async def test_the_text_of_a_source_is_parsed(text: str, path: str | None, url: str | None) -> None:
    source = repository.parse_source(text, Path("/here"))
    assert (source.path, source.url) == (path and Path(path), url)


async def test_a_directory_wins_over_a_github_name(tmp_path: Path) -> None:
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    assert repository.parse_source("owner/repo", tmp_path).path == tmp_path / "owner" / "repo"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ext::sh -c id",
        "ext://x",
        "https://ada:Zq8TestSecret@example.com/a",
        "https://Zq8TestSecret@example.com/a",
        "ssh://-oX/a",
    ],
)
async def test_an_unsafe_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        repository.parse_source(text)
    assert "Zq8TestSecret" not in str(refused.value)


async def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRepository):
        await repository.check(repository.parse_source("absent", tmp_path))


async def test_a_directory_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRepository, match="not a git repository"):
        await repository.check(repository.parse_source(str(tmp_path)))


async def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoRepository):
        await repository.check(repository.parse_source(str(tmp_path / "file")))


async def test_a_repository_without_commits_is_refused(empty: Repo) -> None:
    with pytest.raises(EmptyRepository):
        await repository.check(repository.parse_source(str(empty.path)))


@pytest.mark.parametrize("base", ["nowhere", "-x", "--all", "main..other", "HEAD:README.md", "0" * 40])
async def test_an_unknown_base_is_refused(repo: Repo, base: str) -> None:
    with pytest.raises(UnknownRevision):
        await repository.check(repository.parse_source(str(repo.path)), base=base)


@pytest.mark.parametrize("branch", ["main", "main/deeper", "hv"])
async def test_a_branch_that_exists_or_collides_is_refused_before_work_begins(repo: Repo, branch: str) -> None:
    repo.git("branch", "hv/other")
    with pytest.raises(BranchExists):
        await repository.check(repository.parse_source(str(repo.path)), branch=branch)


@pytest.mark.parametrize("branch", ["-x", "a..b", "a b", "a.lock", "", "HEAD", "@{x}"])
async def test_an_invalid_branch_name_is_refused(repo: Repo, branch: str) -> None:
    with pytest.raises(BadInput):
        await repository.check(repository.parse_source(str(repo.path)), branch=branch)


async def taken(repo: Path, session: Session, base: str | None = None, dirty: bool = False) -> repository.Taken:
    return await repository.take(repository.parse_source(str(repo)), session.origin, base=base, include_dirty=dirty)


async def test_the_base_is_head(repo: Repo, session: Session) -> None:
    found = await taken(repo.path, session)
    assert found == repository.Taken(repo.git("rev-parse", "HEAD"), "main", ())
    assert await git_output("rev-list", "--count", found.base, at=session.origin) == "2"


async def test_another_base_is_a_branch_a_tag_or_an_expression(repo: Repo, session: Session) -> None:
    first = repo.git("rev-parse", "HEAD~1")
    repo.git("branch", "old", first)
    repo.git("tag", "-a", "-m", "v1", "v1", first)
    for base, ref in (("old", "old"), ("v1", ""), ("HEAD~1", ""), (first[:10], "")):
        found = await taken(repo.path, session, base)
        assert (found.base, found.base_ref) == (first, ref)


async def test_taking_again_replaces_the_copy(repo: Repo, session: Session) -> None:
    before = await taken(repo.path, session)
    assert await taken(repo.path, session) == before


async def test_bare_worktree_subdirectory_detached_and_shallow_repositories_can_be_taken(
    repo: Repo, session: Session, tmp_path: Path
) -> None:
    head = repo.git("rev-parse", "HEAD")
    repo.write("sub/file", "x")
    repo.git("clone", "--quiet", "--bare", str(repo.path), str(tmp_path / "bare"))
    repo.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.path}", str(tmp_path / "shallow"))
    for path in (tmp_path / "bare", tmp_path / "tree", repo.path / "sub", repo.path / ".git", tmp_path / "shallow"):
        assert (await taken(path, session)).base == head


async def test_a_commit_that_no_branch_reaches_can_be_the_base(repo: Repo, session: Session) -> None:
    repo.git("checkout", "--quiet", "--detach")
    lost = repo.commit("Alone", lost="x")
    repo.git("checkout", "--quiet", "main")
    assert (await taken(repo.path, session, lost)).base == lost


async def test_uncommitted_changes_are_left_out_and_named(repo: Repo, session: Session) -> None:
    repo.write("README.md", "dirty\n")
    repo.write("new", "x")
    found = await taken(repo.path, session)
    assert found.base == repo.git("rev-parse", "HEAD")
    assert "2 files are left out" in found.notices[0]


async def test_uncommitted_changes_are_included_on_request_and_the_source_does_not_change(
    repo: Repo, session: Session
) -> None:
    repo.write(".gitignore", "ignored\n")
    repo.write("README.md", "staged\n")
    repo.git("add", "README.md")
    repo.write("README.md", "and changed again\n")
    (repo.path / "app.py").unlink()
    repo.write("new dir/ünïcode", "x")
    repo.write("ignored", "secret")
    before = repo.snapshot()
    found = await taken(repo.path, session, dirty=True)
    assert repo.snapshot() == before
    listed = await git_output(
        "-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", found.base, at=session.origin
    )
    assert listed.split("\n") == [".gitignore", "README.md", "new dir/ünïcode"]
    assert await git_output("show", f"{found.base}:README.md", at=session.origin) == "and changed again"
    assert await git_output("rev-parse", f"{found.base}^", at=session.origin) == repo.git("rev-parse", "HEAD")
    assert await git_output("log", "-1", "--format=%an %ae", found.base, at=session.origin) == "Ada ada@example.com"


async def test_staged_files_of_a_shallow_repository_are_included(repo: Repo, session: Session, tmp_path: Path) -> None:
    repo.git("clone", "--quiet", "--depth=1", f"file://{repo.path}", str(tmp_path / "shallow"))
    shallow = Repo(tmp_path / "shallow")
    shallow.write("staged", "only staged")
    shallow.git("add", "staged")
    found = await taken(shallow.path, session, dirty=True)
    shallow.git("rm", "--quiet", "--cached", "staged")
    shallow.git("gc", "--quiet", "--prune=now")
    assert await git_output("show", f"{found.base}:staged", at=session.origin) == "only staged"


async def test_taking_runs_no_program_of_the_repository(repo: Repo, session: Session, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\n{{ echo $0; tr '\\0' ' ' </proc/$PPID/cmdline; }} >>{marker}\ncat\n")
    program.chmod(0o755)
    for hook in ("post-checkout", "pre-commit", "post-index-change", "reference-transaction", "post-merge"):
        (repo.path / ".git/hooks" / hook).write_text(program.read_text())
        (repo.path / ".git/hooks" / hook).chmod(0o755)
    repo.commit("Filtered", __gitattributes="* filter=evil diff=evil\n")
    marker.unlink(missing_ok=True)
    # A filter from an included file, a filter named like git-lfs, and a remote program for a missing commit
    included = repo.write(".git/included", f'[filter "evil"]\n\tclean = {program}\n')
    repo.git("config", "include.path", str(included))
    repo.git("config", "filter.other.clean", f"git-lfs clean; {program}")
    repo.write(".git/info/attributes", "app.py filter=other\n")
    repo.write("app.py", "dirty\n")
    for name, value in (("promisor", "true"), ("url", str(tmp_path)), ("uploadpack", f"{program};")):
        repo.git("config", f"remote.evil.{name}", value)
    repo.git("config", "extensions.partialClone", "evil")
    for name in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.external"):
        repo.git("config", name, str(program))
    repo.write("README.md", "dirty\n")
    await repository.check(repository.parse_source(str(repo.path)), branch="free")
    with pytest.raises(UnknownRevision):
        await repository.check(repository.parse_source(str(repo.path)), base="5" * 40)
    await taken(repo.path, session, dirty=True)
    assert not marker.exists(), marker.read_text()


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[int]:
    """Serve `directory` with git's own server on a free port of this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", f"--port={port}", "--verbose"]
    async with running([*words, f"--base-path={directory}", str(directory)]) as daemon:
        assert daemon.stderr is not None
        said = b""
        while b"Ready to rumble" not in said:
            said += await daemon.stderr.receive()
        yield port


async def test_a_remote_repository_is_cloned_and_its_base_found(repo: Repo, session: Session, tmp_path: Path) -> None:
    bare = tmp_path / "served" / "r.git"
    repo.git("clone", "--quiet", "--bare", str(repo.path), str(bare))
    async with served(bare.parent) as port:
        source = repository.parse_source(f"git://127.0.0.1:{port}/r.git")
        with pytest.raises(UnknownRevision):
            await repository.check(source, base="nowhere")
        with pytest.raises(BranchExists):
            await repository.check(source, branch="main")
        with pytest.raises(NoRepository):
            await repository.check(repository.parse_source(f"git://127.0.0.1:{port}/absent.git"))
        await repository.check(source, base="main", branch="free")
        lines: list[str] = []
        found = await repository.take(source, session.origin, base=None, report=lines.append)
        assert found == (repo.git("rev-parse", "HEAD"), "main", ())
        assert lines[0] == f"cloning git://127.0.0.1:{port}/r.git"


async def test_submodules_are_named(repo: Repo, session: Session, tmp_path: Path) -> None:
    other = init(tmp_path / "other")
    other.commit("Other", lib="x")
    repo.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.path), "vendor/other")
    repo.commit("With a submodule")
    found = await taken(repo.path, session)
    assert any("vendor/other" in notice for notice in found.notices)
