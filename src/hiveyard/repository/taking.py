"""Take a repository: make a bare copy that no guest sees, and choose the base, the commit that work starts from."""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from hiveyard.core.errors import BadInput, NoSpace, RepositoryError, UnknownRevision
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.repository.git import INERT_SOURCE, TRUSTED, complaint, config, git, git_output, git_with_progress
from hiveyard.repository.source import RepositorySource, open_local, resolve_local, unreachable
from hiveyard.repository.submodules import BASE, foreign_filters_off, take_submodules

_NAME, _EMAIL = "Hiveyard", "hiveyard@localhost"
_DIRTY_MESSAGE = "Uncommitted changes at the start of the work"


class Taken(NamedTuple):
    """A repository that was taken. `base` is the full id of the commit that work starts from; `base_ref` is the branch
    it was the tip of, or empty. `notices` are sentences for the user."""

    base: str
    base_ref: str
    notices: tuple[str, ...] = ()


async def take(
    source: RepositorySource,
    into: Path,
    *,
    base: str | None = None,
    include_dirty: bool = False,
    report: Report = quiet,
) -> Taken:
    """Make the bare repository `into` from a source, replacing an existing one, and choose the base.

    A source on this host is only read: its index, work tree, references and objects do not change. Raises NoRepository,
    EmptyRepository, UnknownRevision, BadInput, NoSpace, RepositoryError."""
    half = into.with_name(into.name + ".half")
    for old in (into, half):
        await anyio.to_thread.run_sync(partial(shutil.rmtree, old, ignore_errors=True))
    into.parent.mkdir(parents=True, exist_ok=True)
    top = None if source.path is None else await open_local(source.path)
    async with measured(report, "copying the repository", partial(disk_usage, half)):
        if top is not None:
            taken = await _take_local(top, half, base, include_dirty)
        else:
            if include_dirty:
                raise BadInput(f"{source} is not on this host: --include-dirty needs a work tree")
            taken = await _take_remote(source, half, base, report)
    await git_output("update-ref", BASE, taken.base, at=half)
    await git_output("config", "hiveyard.baseref", taken.base_ref, at=half)
    address = source.url or (await config(top, "remote.origin.url") if top is not None else "")
    async with measured(report, "copying submodules", partial(disk_usage, half)):
        submodules = await take_submodules(half, taken.base, local=top, address=address, report=report)
    half.rename(into)
    return taken._replace(notices=taken.notices + submodules)


async def _take_local(top: Path, into: Path, base: str | None, include_dirty: bool) -> Taken:
    start = await resolve_local(top, base)
    await _clone(str(top), into)
    await _copy_commit(top, into, start)
    await _store_identity(top, into)
    changed = await _changed_files(top)
    ref = await _branch_at(top, base)
    if include_dirty and changed:
        if start != await resolve_local(top, None):
            raise BadInput("--include-dirty takes the changes to the checked out commit, but --base names another one")
        return Taken(
            await _commit_dirty(top, into, start), ref, (f"included uncommitted changes in {_files(changed)}",)
        )
    if changed:
        return Taken(
            start,
            ref,
            (
                f"works on the last commit: uncommitted changes in {_files(changed)} are left out;"
                " --include-dirty includes them",
            ),
        )
    return Taken(start, ref)


async def _take_remote(source: RepositorySource, into: Path, base: str | None, report: Report) -> Taken:
    assert source.url is not None
    report(f"cloning {source.url}")
    await _clone(source.url, into, report)
    await _store_identity(into, into)
    try:
        start = await resolve_local(into, base)
    except UnknownRevision:
        if base is None:
            raise
        raise UnknownRevision(f"{source.url} has no commit named {base}", hint=f"git ls-remote {source.url}") from None
    return Taken(start, await _branch_at(into, base))


async def _clone(origin: str, into: Path, report: Report = quiet) -> None:
    flags = ("--bare", "--progress", "--no-recurse-submodules", "--template=")
    words = ("clone", *flags, *((INERT_SOURCE,) if origin.startswith("/") else ()), "--", origin, str(into))
    done = await git_with_progress(*words, report=report)
    if done.ok:
        return
    shutil.rmtree(into, ignore_errors=True)
    error = done.stderr.decode("utf-8", "replace")
    if "No space left on device" in error or "Disk quota exceeded" in error:
        raise NoSpace(f"no space to copy {origin} to {into.parent}", hint=f"df -h {into.parent}")
    if origin.startswith("/"):
        raise RepositoryError(f"{origin} cannot be copied: {complaint(done)}", hint=f"git -C {origin} fsck")
    raise unreachable(origin, complaint(done))


async def _copy_commit(top: Path, into: Path, commit: str) -> None:
    """Copy a commit that no reference reaches (a detached HEAD, a stash): a clone leaves it out."""
    if (await git("cat-file", "-e", commit + "^{commit}", at=into)).ok:
        return
    words = ("fetch", "--quiet", "--no-tags", INERT_SOURCE, "--", str(top), f"{commit}:{BASE}")
    done = await git(*words, at=into, env=TRUSTED)
    if not done.ok:
        raise RepositoryError(f"commit {commit} of {top} cannot be copied: {complaint(done)}")


async def _store_identity(source: Path, into: Path) -> None:
    """Store the user's name and address: commits in the guest carry them."""
    name, email = await config(source, "user.name"), await config(source, "user.email")
    await git_output("config", "hiveyard.name", name or _NAME, at=into)
    await git_output("config", "hiveyard.email", email or _EMAIL, at=into)


async def identity(origin: Path) -> tuple[str, str]:
    """Return the name and the address for commits of this work."""
    return await config(origin, "hiveyard.name") or _NAME, await config(origin, "hiveyard.email") or _EMAIL


async def _branch_at(top: Path, base: str | None) -> str:
    """Return the branch that `base` (None: HEAD) names; empty if it is no branch."""
    revision = base or "HEAD"
    if revision.startswith("-"):
        return ""
    done = await git("rev-parse", "--symbolic-full-name", revision, at=top)
    name = done.stdout.decode("utf-8", "replace").strip() if done.ok else ""
    for prefix in ("refs/heads/", "refs/remotes/origin/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return ""


async def _changed_files(top: Path) -> int:
    """Return how many files differ from the last commit, including untracked ones; 0 for a bare repository."""
    words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignore-submodules=dirty")
    done = await git(*await foreign_filters_off(top), *words, at=top)
    return done.stdout.count(b"\0") if done.ok else 0


async def _commit_dirty(top: Path, into: Path, head: str) -> str:
    """Commit the work tree on top of `head`, from a copy of the index; the objects go into `into`."""
    objects = await git_output("rev-parse", "--path-format=absolute", "--git-path", "objects", at=top)
    index = Path(await git_output("rev-parse", "--path-format=absolute", "--git-path", "index", at=top))
    name, email = await identity(into)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".dirty-") as scratch:
        copy = Path(scratch) / "index"
        # The clone of a shallow repository lacks objects that are only staged there.
        complete = not (into / "shallow").exists()
        if complete and index.exists():
            shutil.copyfile(index, copy)
        env = {
            "GIT_INDEX_FILE": str(copy),
            "GIT_OBJECT_DIRECTORY": str(into / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": f'"{_quoted(objects)}"' if complete else "",
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": email,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": email,
        }
        off = await foreign_filters_off(top)
        if not complete:
            await git_output("read-tree", head, at=top, env=env)
        await git_output(*off, "add", "--all", "--", ":/", at=top, env=env)
        tree = await git_output(*off, "write-tree", at=top, env=env)
        return await git_output("commit-tree", tree, "-p", head, "-m", _DIRTY_MESSAGE, at=top, env=env)


def _quoted(path: str) -> str:
    return path.replace("\\", "\\\\").replace('"', '\\"')


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
