"""Bringing finished work into a person's repository: a branch, and only when asked for also their checkout."""

from __future__ import annotations

import re
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import NothingToApply, RepositoryError, WouldOverwrite
from hiveyard.kit.process import Completed
from hiveyard.kit.text import one_line
from hiveyard.repository.diff import tip_of
from hiveyard.repository.git import GIVEN, answer, complaint, git
from hiveyard.repository.source import check_branch_name, check_free, open_local
from hiveyard.repository.submodules import bare_copy, find_local, submodules

_UNKNOWN = re.compile(r"^error: (The following untracked|.* would lose untracked)", re.MULTILINE)
"""How git begins a refusal for the sake of files that it does not know."""


class Applied(NamedTuple):
    """`created` False: the branch was there already, with this work or the start of it. `merged`: the checkout was
    moved forward to it. `notices` are sentences about submodules."""

    repository: Path
    branch: str
    head: str
    created: bool
    merged: bool
    notices: tuple[str, ...] = ()


async def apply(
    origin: Path, into: Path, *, base: str, branch: str, name: str | None = None, merge: bool = False
) -> Applied:
    """Make the branch in the repository that holds the directory `into`; with `merge` also move its checkout forward.

    `origin` is the host's bare repository with the collected `branch`; `name` calls it otherwise over there. Index
    and work tree are not touched without `merge`. Raises NothingToApply, NoRepository, WouldOverwrite when a branch
    of that name holds other work or a merge would lose what is not committed, BranchExists when git cannot keep one of
    that name beside those that are there, RepositoryError."""
    target = name or branch
    await check_branch_name(target)
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=origin)
    head = done.stdout.decode().strip()
    if not done.ok or head == base:
        raise NothingToApply(f"there are no commits on {branch}: the agent changed nothing")
    top = await open_local(into)
    await _check_related(top, origin, base)
    inner, absent = await _inside(top, origin, branch, target)
    moves = [*inner, _Move(top, origin, head, await tip_of(top, target))]
    for move in moves:
        if move.before is None:
            await check_free(move.top, target)
        elif move.before != move.head:
            await _refuse_other_work(move, branch, target)
            await _refuse_checked_out(move.top, target)
    # The submodules first: when the branch is there, all that it leads to is.
    for move in moves:
        if move.before != move.head:
            await _fetch(move, branch, target)
    merged = merge and await _merge(top, target)
    notices = _notices(top, inner, absent)
    return Applied(top, target, head, moves[-1].before is None, merged, notices)


class _Move(NamedTuple):
    """A branch to make in `top` from the bare repository `origin`: from `before` (None: it is not there) to `head`.

    `base` of a submodule is where its work began: our copy may know nothing before that, `top` does."""

    top: Path
    origin: Path
    head: str
    before: str | None
    base: str | None = None


async def _inside(top: Path, origin: Path, branch: str, target: str) -> tuple[list[_Move], list[str]]:
    """What to do in the submodules that were worked on, and the paths of those that the user does not have."""
    moves, absent = [], []
    for one in submodules(origin):
        copy = bare_copy(origin, one)
        head = await tip_of(copy, branch)
        if head is None or head == one.commit:
            continue
        here = await find_local(top, one.path, one.module)
        if here is None or not (await git("cat-file", "-e", f"{one.commit}^{{commit}}", at=here)).ok:
            absent.append(one.path)
        else:
            moves.append(_Move(here, copy, head, await tip_of(here, target), one.commit))
    return moves, absent


def _notices(top: Path, inner: list[_Move], absent: list[str]) -> tuple[str, ...]:
    where = shlex.quote(str(top))
    said = [f"the branch was made in the submodule at {move.top} too" for move in inner]
    if inner:
        said.append(f"with the branch checked out, bring its submodules along: git -C {where} submodule update")
    fetch = f"git -C {where} submodule update --init --recursive"
    missing = "is not here at the commit that its work began from"
    said += [f"submodule {path} {missing}: {fetch} -- {shlex.quote(path)}, then apply once more" for path in absent]
    return tuple(said)


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


async def _refuse_other_work(move: _Move, branch: str, target: str) -> None:
    top, before = move.top, move.before
    if before is not None and not await _grown_from(before, move, branch):
        raise WouldOverwrite(f"{top} has a branch {target} with other work on it", hint="choose another: --branch NAME")


async def _grown_from(before: str, move: _Move, branch: str) -> bool:
    """Whether what is on the branch is the start of this work, or an earlier state of it: what a session had not
    committed yet is brought out anew each time."""
    if (await git("merge-base", "--is-ancestor", before, move.head, at=move.origin)).ok:
        return True
    log = await git("reflog", "show", "--format=%H", f"refs/heads/{branch}", "--", at=move.origin)
    return before in log.stdout.decode().split()


async def _refuse_checked_out(top: Path, branch: str) -> None:
    listed = await git("worktree", "list", "--porcelain", at=top)
    if f"branch refs/heads/{branch}\n" in listed.stdout.decode("utf-8", "replace"):
        raise WouldOverwrite(
            f"{branch} is checked out in {top}: moving it would change the work tree under it",
            hint=f"git -C {top} switch -",
        )


async def _fetch(move: _Move, branch: str, target: str) -> None:
    if move.base is None:
        await _fetch_from(move.origin, move, branch, target)
        return
    with tempfile.TemporaryDirectory(prefix="hiveyard-apply-") as scratch:
        # A bundle says nothing about where our copy's history ends: that would cut the user's off there too.
        bundle = Path(scratch, "work.bundle")
        words = ("bundle", "create", "--quiet", str(bundle), f"refs/heads/{branch}", f"^{move.base}")
        await answer(*words, at=move.origin)
        await _fetch_from(bundle, move, branch, target)


async def _fetch_from(source: Path, move: _Move, branch: str, target: str) -> None:
    """The branch is moved from where it was looked at, or not at all."""
    top = move.top
    flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    done = await git("fetch", *flags, "--", str(source), f"refs/heads/{branch}", at=top, env=GIVEN)
    if done.ok:
        words = ("update-ref", "-m", "hv apply", f"refs/heads/{target}", move.head, move.before or "")
        with anyio.CancelScope(shield=True):
            done = await git(*words, at=top)
    if not done.ok:
        raise RepositoryError(f"{target} cannot be made in {top}: {complaint(done)}")


async def _merge(top: Path, branch: str) -> bool:
    if (await answer("rev-parse", "--is-bare-repository", at=top)) == "true":
        raise RepositoryError(f"{top} is bare and has no checkout to merge into")
    # Git overwrites what is ignored, a person's .env too, unless it is told not to.
    words = ("merge", "--ff-only", "--no-stat", "--no-overwrite-ignore", f"refs/heads/{branch}")
    # Git that is killed leaves a half-moved checkout and its lock.
    with anyio.CancelScope(shield=True):
        done = await git(*words, at=top)
    if done.ok:
        return True
    raise _not_merged(top, branch, done)


def _not_merged(top: Path, branch: str, done: Completed) -> WouldOverwrite:
    said, there = done.stderr.decode("utf-8", "replace"), f"{branch} is there, but"
    again = f"git -C {shlex.quote(str(top))} merge --no-overwrite-ignore {branch}"
    if _UNKNOWN.search(said):
        files = one_line(", ".join(line.strip() for line in said.splitlines() if line.startswith("\t")), 200)
        return WouldOverwrite(
            f"{there} merging it would overwrite files in {top} that are in no commit: {files}",
            hint=f"move them away, then: {again}",
        )
    if "would be overwritten" in said:
        return WouldOverwrite(
            f"{there} merging it would overwrite uncommitted changes in {top}", hint=f"commit them, then: {again}"
        )
    return WouldOverwrite(
        f"{there} what is checked out in {top} has gone on since: {complaint(done)}",
        hint=f"git -C {shlex.quote(str(top))} merge {branch}",
    )
