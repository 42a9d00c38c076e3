"""Bringing finished work into a person's repository: a branch, and only when asked for also their checkout."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import NothingToApply, RepositoryError, WouldOverwrite
from hiveyard.engine.git import answer, complaint, git
from hiveyard.engine.git_source import check_branch_name, open_local


class Applied(NamedTuple):
    """`created` False: the branch was there already, with this work or the start of it. `merged`: the checkout was
    moved forward to it."""

    repository: Path
    branch: str
    head: str
    created: bool
    merged: bool


async def apply(
    origin: Path, into: Path, *, base: str, branch: str, name: str | None = None, merge: bool = False
) -> Applied:
    """Make the branch in the repository that holds the directory `into`; with `merge` also move its checkout forward.

    `origin` is the host's bare repository with the collected `branch`; `name` calls it otherwise over there. Index
    and work tree are not touched without `merge`. Raises NothingToApply, NoRepository, WouldOverwrite when a branch
    of that name holds other work or a merge would lose uncommitted changes, RepositoryError."""
    target = name or branch
    await check_branch_name(target)
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=origin)
    head = done.stdout.decode().strip()
    if not done.ok or head == base:
        raise NothingToApply(f"there are no commits on {branch}: the agent changed nothing")
    top = await open_local(into)
    await _check_related(top, origin, base)
    before = await _commit_of(top, target)
    if before != head:
        await _refuse_other_work(top, origin, target, before, head)
        await _refuse_checked_out(top, target)
        await _fetch(top, origin, branch, target)
    merged = merge and await _merge(top, target)
    return Applied(top, target, head, before is None, merged)


async def _commit_of(top: Path, branch: str) -> str | None:
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=top)
    return done.stdout.decode().strip() if done.ok else None


async def _check_related(top: Path, origin: Path, base: str) -> None:
    """The base may be a commit of uncommitted changes, which exists only here: then its parent must be there."""
    known = await answer("rev-list", "--max-count=2", "--first-parent", base, at=origin)
    for commit in known.splitlines():
        if (await git("cat-file", "-e", commit + "^{commit}", at=top)).ok:
            return
    raise RepositoryError(
        f"{top} does not have commit {base[:12]}, which the work began from: it is another repository",
        hint=f"git -C {top} fetch --all, or apply in a clone of the right one",
    )


async def _refuse_other_work(top: Path, origin: Path, branch: str, before: str | None, head: str) -> None:
    if before is not None and not (await git("merge-base", "--is-ancestor", before, head, at=origin)).ok:
        raise WouldOverwrite(f"{top} has a branch {branch} with other work on it", hint="choose another: --branch NAME")


async def _refuse_checked_out(top: Path, branch: str) -> None:
    listed = await git("worktree", "list", "--porcelain", at=top)
    if f"branch refs/heads/{branch}\n" in listed.stdout.decode("utf-8", "replace"):
        raise WouldOverwrite(
            f"{branch} is checked out in {top}: moving it would change the work tree under it",
            hint=f"git -C {top} switch -",
        )


async def _fetch(top: Path, origin: Path, branch: str, target: str) -> None:
    flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    done = await git("fetch", *flags, "--", str(origin), f"refs/heads/{branch}:refs/heads/{target}", at=top)
    if not done.ok:
        raise RepositoryError(f"{target} cannot be made in {top}: {complaint(done)}")


async def _merge(top: Path, branch: str) -> bool:
    if (await answer("rev-parse", "--is-bare-repository", at=top)) == "true":
        raise RepositoryError(f"{top} is bare and has no checkout to merge into")
    done = await git("merge", "--ff-only", "--no-stat", f"refs/heads/{branch}", at=top)
    if done.ok:
        return True
    said = done.stderr.decode("utf-8", "replace")
    if "would be overwritten" in said:
        raise WouldOverwrite(
            f"{branch} is there, but merging it would overwrite uncommitted changes in {top}",
            hint=f"commit them, then: git -C {top} merge {branch}",
        )
    raise WouldOverwrite(
        f"{branch} is there, but what is checked out in {top} has gone on since: {complaint(done)}",
        hint=f"git -C {top} merge {branch}",
    )
