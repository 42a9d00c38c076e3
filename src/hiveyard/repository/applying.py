"""Copy the result into the user's repository: as a branch, and on request also into the checkout."""

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
from hiveyard.repository.git import TRUSTED, complaint, git, git_output
from hiveyard.repository.source import check_branch_name, check_free, open_local
from hiveyard.repository.submodules import bare_copy, find_local, submodules

_UNTRACKED = re.compile(r"^error: (The following untracked|.* would lose untracked)", re.MULTILINE)
"""Start of git's error about untracked files in the way."""


class Applied(NamedTuple):
    """The result of `apply`. `created` is False if the branch existed with this work or an earlier version of it;
    `merged`: the checkout was fast-forwarded to it. `notices` are sentences about submodules."""

    repository: Path
    branch: str
    head: str
    created: bool
    merged: bool
    notices: tuple[str, ...] = ()


async def apply(
    origin: Path, into: Path, *, base: str, branch: str, name: str | None = None, merge: bool = False
) -> Applied:
    """Create the branch in the repository that contains the directory `into`; with `merge` also fast-forward its
    checkout.

    `origin` is the host's bare repository with the collected `branch`; `name` is another name for it in the target.
    Without `merge`, index and work tree do not change. Raises NothingToApply; NoRepository; WouldOverwrite when a
    branch of that name holds other work, or when a merge would lose uncommitted changes; BranchExists when the name
    collides with an existing branch; RepositoryError."""
    target = name or branch
    await check_branch_name(target)
    done = await git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", at=origin)
    head = done.stdout.decode().strip()
    if not done.ok or head == base:
        raise NothingToApply(f"there are no commits on {branch}: the agent changed nothing")
    top = await open_local(into)
    await _check_related(top, origin, base)
    inner, absent = await _submodule_updates(top, origin, branch, target)
    updates = [*inner, _Update(top, origin, head, await tip_of(top, target))]
    for update in updates:
        if update.before is None:
            await check_free(update.top, target)
        elif update.before != update.head:
            await _refuse_other_work(update, branch, target)
            await _refuse_checked_out(update.top, target)
    # Submodules come first, so that the branch never points to commits that are missing.
    for update in updates:
        if update.before != update.head:
            await _fetch(update, branch, target)
    merged = merge and await _merge(top, target)
    notices = _notices(top, inner, absent)
    return Applied(top, target, head, updates[-1].before is None, merged, notices)


class _Update(NamedTuple):
    """A branch to create or move in `top`, from `before` (None: there is none) to `head` of the bare repository
    `origin`.

    `base` is set for a submodule: the commit its work began from. Hiveyard's copy may lack the history before it, `top`
    has it."""

    top: Path
    origin: Path
    head: str
    before: str | None
    base: str | None = None


async def _submodule_updates(top: Path, origin: Path, branch: str, target: str) -> tuple[list[_Update], list[str]]:
    """Return the updates of submodules that were worked on, and the paths of those that the user does not have."""
    updates, absent = [], []
    for submodule in submodules(origin):
        copy = bare_copy(origin, submodule)
        head = await tip_of(copy, branch)
        if head is None or head == submodule.commit:
            continue
        local = await find_local(top, submodule.path, submodule.module)
        if local is None or not (await git("cat-file", "-e", f"{submodule.commit}^{{commit}}", at=local)).ok:
            absent.append(submodule.path)
        else:
            updates.append(_Update(local, copy, head, await tip_of(local, target), submodule.commit))
    return updates, absent


def _notices(top: Path, inner: list[_Update], absent: list[str]) -> tuple[str, ...]:
    where = shlex.quote(str(top))
    notices = [f"the branch was also created in the submodule at {update.top}" for update in inner]
    if inner:
        notices.append(f"after checking out the branch, update its submodules: git -C {where} submodule update")
    fetch = f"git -C {where} submodule update --init --recursive"
    missing = "is not here at the commit that its work began from"
    notices += [f"submodule {path} {missing}: {fetch} -- {shlex.quote(path)}, then apply again" for path in absent]
    return tuple(notices)


async def _check_related(top: Path, origin: Path, base: str) -> None:
    """Raise RepositoryError if `top` is another repository. The base may be a commit of uncommitted changes, which only
    `origin` has; then `top` must have its parent."""
    known = await git_output("rev-list", "--max-count=2", "--first-parent", base, at=origin)
    for commit in known.splitlines():
        if (await git("cat-file", "-e", commit + "^{commit}", at=top)).ok:
            return
    raise RepositoryError(
        f"{top} does not have commit {base[:12]}, which the work began from: it is another repository",
        hint=f"git -C {top} fetch --all, or apply in a clone of the right one",
    )


async def _refuse_other_work(update: _Update, branch: str, target: str) -> None:
    top, before = update.top, update.before
    if before is not None and not await _is_earlier_version(before, update, branch):
        raise WouldOverwrite(f"{top} has a branch {target} with other work on it", hint="choose another: --branch NAME")


async def _is_earlier_version(before: str, update: _Update, branch: str) -> bool:
    """Return whether the commit is an ancestor of this work or an earlier version of it: a session's uncommitted
    changes become a new commit each time they are collected."""
    if (await git("merge-base", "--is-ancestor", before, update.head, at=update.origin)).ok:
        return True
    log = await git("reflog", "show", "--format=%H", f"refs/heads/{branch}", "--", at=update.origin)
    return before in log.stdout.decode().split()


async def _refuse_checked_out(top: Path, branch: str) -> None:
    listed = await git("worktree", "list", "--porcelain", at=top)
    if f"branch refs/heads/{branch}\n" in listed.stdout.decode("utf-8", "replace"):
        raise WouldOverwrite(
            f"{branch} is checked out in {top}: moving it would change the work tree under it",
            hint=f"git -C {top} switch -",
        )


async def _fetch(update: _Update, branch: str, target: str) -> None:
    if update.base is None:
        await _fetch_from(update.origin, update, branch, target)
        return
    with tempfile.TemporaryDirectory(prefix="hiveyard-apply-") as scratch:
        # A fetch from a shallow copy would make the user's repository shallow, too; a bundle does not.
        bundle = Path(scratch, "work.bundle")
        words = ("bundle", "create", "--quiet", str(bundle), f"refs/heads/{branch}", f"^{update.base}")
        await git_output(*words, at=update.origin)
        await _fetch_from(bundle, update, branch, target)


async def _fetch_from(source: Path, update: _Update, branch: str, target: str) -> None:
    """Fetch the branch and move it, unless it is no longer at `update.before`. Raises RepositoryError."""
    top = update.top
    flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    done = await git("fetch", *flags, "--", str(source), f"refs/heads/{branch}", at=top, env=TRUSTED)
    if done.ok:
        words = ("update-ref", "-m", "hv apply", f"refs/heads/{target}", update.head, update.before or "")
        with anyio.CancelScope(shield=True):
            done = await git(*words, at=top)
    if not done.ok:
        raise RepositoryError(f"{target} cannot be created in {top}: {complaint(done)}")


async def _merge(top: Path, branch: str) -> bool:
    if (await git_output("rev-parse", "--is-bare-repository", at=top)) == "true":
        raise RepositoryError(f"{top} is bare and has no checkout to merge into")
    # By default git overwrites ignored files, for example the user's .env.
    words = ("merge", "--ff-only", "--no-stat", "--no-overwrite-ignore", f"refs/heads/{branch}")
    # A git that is killed leaves a half-updated checkout and its lock.
    with anyio.CancelScope(shield=True):
        done = await git(*words, at=top)
    if done.ok:
        return True
    raise _not_merged(top, branch, done)


def _not_merged(top: Path, branch: str, done: Completed) -> WouldOverwrite:
    error, created = done.stderr.decode("utf-8", "replace"), f"{branch} was created, but"
    again = f"git -C {shlex.quote(str(top))} merge --no-overwrite-ignore {branch}"
    if _UNTRACKED.search(error):
        files = one_line(", ".join(line.strip() for line in error.splitlines() if line.startswith("\t")), 200)
        return WouldOverwrite(
            f"{created} merging it would overwrite untracked files in {top}: {files}",
            hint=f"move them away, then: {again}",
        )
    if "would be overwritten" in error:
        return WouldOverwrite(
            f"{created} merging it would overwrite uncommitted changes in {top}", hint=f"commit them, then: {again}"
        )
    return WouldOverwrite(
        f"{created} the checkout in {top} has diverged from it: {complaint(done)}",
        hint=f"git -C {shlex.quote(str(top))} merge {branch}",
    )
