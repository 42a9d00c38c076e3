"""Collect an agent's work from a guest, as a bundle that is not trusted until git has checked it.

The host never runs git where a guest can write. The work leaves the guest as one file of bounded size. This module
reads its header, git checks its objects (fsck) while it adds them to the host's bare repository, and commits, counts
and the patch are computed there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hiveyard.core.commands import Command, Result
from hiveyard.core.errors import BadBundle, GuestNoSpace, RepositoryError
from hiveyard.core.machines import Report, quiet
from hiveyard.core.ports import Guest
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.kit.text import decode, one_line
from hiveyard.repository import scripts
from hiveyard.repository.branches import collide, heads
from hiveyard.repository.checkout import ROOT, bundle_base, object_format
from hiveyard.repository.diff import Change, changes, submodule_notices
from hiveyard.repository.git import git, git_output, git_to_file
from hiveyard.repository.packs import MEMORY, index_pack, limit_memory, pack_error
from hiveyard.repository.source import check_branch_name
from hiveyard.repository.submodules import Submodule, bare_copy, submodules
from hiveyard.repository.taking import identity

MESSAGE = {
    False: "Uncommitted work\n\nCommitted by Hiveyard after the agent had ended.\n",
    True: "Uncommitted work\n\nCommitted by Hiveyard; the repository in the machine does not have this commit.\n",
}
"""Message of the commit of uncommitted work, by `aside`."""

PATCH, BUNDLE = "changes.patch", "work.bundle"
LIMIT = 1 << 30
"""Limit of a bundle, of a patch and of one file in the work, in bytes."""
LARGEST = 512 << 20
"""Size in bytes above which an uncommitted file is left out of the work."""

_RESULT = "refs/hiveyard/result"
_WINDOW = 32 << 20
_TIMEOUT = 3600.0
_HEADER_LIMIT = 64 << 10
_ANSWER = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64}) (\d{1,15}) (\d{1,9}) ([a-z]{0,20})\.\Z")
_LARGE_FILE = re.compile(rb"(\d{1,19})/([^\0]{1,4096})\0")
_NOTES = {
    "r": "the repository in the machine was unusable: the result is one commit, made from its files",
    "m": "a merge or rebase was in progress: the result has the files as they were then",
    "n": "a repository inside the repository was taken as plain files",
    "u": "some files could not be read and are not in the result",
    "b": "the work was on a branch that was not checked out",
    "h": "the history before the base was rewritten: the result is one commit on top of the base",
}


class Tree(NamedTuple):
    """A work tree at `path` below `/session` in the guest. `origin` is the host's bare copy of its repository; `module`
    is the place of a submodule's repository below `/session`. With `aside` the guest's repositories do not change, and
    `links` has the collected commits of the submodules in the tree, as `COMMIT PATH`."""

    origin: Path
    path: str
    base: str
    branch: str
    module: str = ""
    aside: bool = False
    links: tuple[str, ...] = ()


class _Limits(NamedTuple):
    """Limits in bytes: `size` of a bundle, a patch or a file; `memory` of a git process that reads them; `largest` of
    an uncommitted file."""

    size: int
    memory: int
    largest: int


class _Answer(NamedTuple):
    """The guest's answer: the commit, the size of its bundle, notes, the bundle or the start of it, and a notice about
    large files that were left out."""

    head: str
    size: int
    notes: str
    start: bytes
    large: str = ""


class Collected(NamedTuple):
    """The collected work. If `commits` is 0 there is none: `head` is the base, `patch` and `bundle` are None. `patch`
    is also None if it could not be made.

    `leftover`: the last commit has the agent's uncommitted changes. `patch` is for `git apply`. Counts and patch
    include submodules."""

    head: str
    commits: int
    files: int
    insertions: int
    deletions: int
    leftover: bool
    patch: Path | None
    bundle: Path | None
    notices: tuple[str, ...] = ()


async def collect(
    guest: Guest,
    origin: Path,
    result: Path,
    *,
    base: str,
    branch: str,
    limit: int = LIMIT,
    memory: int = MEMORY,
    largest: int = LARGEST,
    aside: bool = False,
    report: Report = quiet,
) -> Collected:
    """Commit the uncommitted work in the guest's `/session/repo` and fetch all work to `branch` of the host's `origin`.

    An uncommitted file of more than `largest` bytes is left out and named in a notice. With `aside` the repository in
    the guest does not change, nor its index and branches: an agent may be at work in it. Writes `changes.patch` and
    `work.bundle` into `result`, and the bundles of submodules into `result/submodules`. Safe to repeat. Raises
    BadBundle if the guest's data is invalid, larger than `limit` bytes, or takes more than `memory` bytes to read;
    RepositoryError; GuestNoSpace; and the guest's errors."""
    await check_branch_name(branch)
    limits = _Limits(limit, memory, largest)
    result.mkdir(parents=True, exist_ok=True)
    bundle = result / BUNDLE
    async with measured(report, "reading the work out of the machine", partial(disk_usage, *_parts(result, origin))):
        links, notices = await _submodules(guest, origin, result, branch, limits, aside)
        answer = await _collect_tree(guest, Tree(origin, "repo", base, branch, "", aside, links), bundle, limits)
    notices = [*_notices(answer), *notices]
    if answer.head == base:
        return Collected(base, 0, 0, 0, 0, False, None, None, tuple(notices))
    notices += await submodule_notices(origin, base, answer.head, branch)
    commits = int(await git_output("rev-list", "--count", f"{base}..{answer.head}", at=origin))
    changed = await changes(origin, base, answer.head, branch)
    counts = [await _counts(change, limits) for change in changed]
    patch, problems = await _patch(changed, result / PATCH, limits)
    notices += problems
    files, insertions, deletions = (sum(numbers) for numbers in zip(*counts, strict=True))
    leftover = "l" in answer.notes
    return Collected(answer.head, commits, files, insertions, deletions, leftover, patch, bundle, tuple(notices))


async def _submodules(
    guest: Guest, origin: Path, result: Path, branch: str, limits: _Limits, aside: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Collect the work of all submodules, the innermost first: each repository records the commits of those in it.
    Returns the links of the outermost repository, and notices."""
    links: dict[str, list[str]] = {}
    notices: list[str] = []
    for submodule in reversed(submodules(origin)):
        copy, module = bare_copy(origin, submodule), f"repo/.git/{submodule.module}"
        inner = tuple(links.get(submodule.path, ()))
        tree = Tree(copy, f"repo/{submodule.path}", submodule.commit, branch, module, aside, inner)
        head, more = await _submodule(guest, tree, submodule, result / "submodules" / submodule.copy, limits)
        notices += more
        if aside and head is not None:
            path = submodule.path.removeprefix(submodule.outer).lstrip("/")
            links.setdefault(submodule.outer, []).append(f"{head} {path}")
    return tuple(links.get("", ())), notices


async def _submodule(
    guest: Guest, tree: Tree, submodule: Submodule, result: Path, limits: _Limits
) -> tuple[str | None, list[str]]:
    """Collect a submodule's work; a failure becomes a notice. Returns its commit, None after a failure, and notices."""
    result.mkdir(parents=True, exist_ok=True)
    try:
        answer = await _collect_tree(guest, tree, result / BUNDLE, limits)
    except RepositoryError as error:
        return None, [f"the work in the submodule {submodule.path} was not collected: {error.message}"]
    return answer.head, [f"submodule {submodule.path}: {notice}" for notice in _notices(answer)]


def _notices(answer: _Answer) -> list[str]:
    notes = [_NOTES[note] for note in dict.fromkeys(answer.notes) if note in _NOTES]
    return [*notes, *([answer.large] if answer.large else [])]


async def _collect_tree(guest: Guest, tree: Tree, bundle: Path, limits: _Limits) -> _Answer:
    """Fetch the tree's work into its bare repository, on its branch, and write `bundle` if there is work."""
    answer = await _commit_leftover(guest, tree, limits.largest)
    if answer.size == 0:
        await _move_branch(tree, tree.base)
        return answer._replace(head=tree.base)
    with _replacing(bundle) as part:
        await _read_bundle(guest, answer, part, limits.size)
        pack = pack_offset(part, head=answer.head, base=tree.base)
        await _unpack(tree.origin, part, pack, base=tree.base, head=answer.head, memory=limits.memory)
        await _check_sizes(tree.origin, tree.base, answer.head, limits)
    await _move_branch(tree, answer.head)
    if len(answer.start) < answer.size:
        await guest.remove(f"{ROOT}/.result.bundle")
    return answer


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _parts(result: Path, origin: Path) -> list[Path]:
    """Return the files to which bundles are written, including those of submodules."""
    inner = [result / "submodules" / submodule.copy for submodule in submodules(origin)]
    return [_part(directory / BUNDLE) for directory in (*inner, result)]


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Yield a path to write to; at the end of the block it replaces `file`. Until then readers get the old content."""
    part = _part(file)
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


async def _move_branch(tree: Tree, head: str) -> None:
    """Move the branch to `head`. Its reflog keeps every commit that was ever the result."""
    ref = f"refs/heads/{tree.branch}"
    words = ("update-ref", "--create-reflog", ref, head)
    # Only one caller at a time moves it, so an existing lock was left by a git that was killed.
    (tree.origin / f"{ref}.lock").unlink(missing_ok=True)
    if (await git(*words, at=tree.origin)).ok:
        return
    # Branches with colliding names are unused copies of the user's branches.
    for name in await heads(tree.origin):
        if name != tree.branch and collide(name, tree.branch):
            await git("update-ref", "-d", f"refs/heads/{name}", at=tree.origin)
    await git_output(*words, at=tree.origin)


async def _commit_leftover(guest: Guest, tree: Tree, largest: int) -> _Answer:
    """Commit the uncommitted work in the guest. A repository that git cannot use is rebuilt first."""
    result = await _run_collect(guest, tree, largest, "")
    if result.status == scripts.BROKEN and not tree.aside:
        await _rebuild(guest, tree)
        result = await _run_collect(guest, tree, largest, "r")
    if tree.module and result.status in (scripts.NO_TREE, scripts.NO_SUBMODULE):
        return _Answer(tree.base, 0, "", b"")  # it was removed, or its files now belong to the repository around it
    _raise_for(result)
    line, _, rest = result.stdout.partition(b"\n")
    match = _ANSWER.match(decode(line))
    if match is None:
        raise BadBundle(f"the machine's answer about the work is invalid: {one_line(decode(line))}")
    large, start = _large_files(int(match[3]), rest, largest)
    return _Answer(match[1], int(match[2]), match[4], start, large)


def _large_files(count: int, answer: bytes, largest: int) -> tuple[str, bytes]:
    """Return the notice about files that were left out, and the rest of the answer. Raises BadBundle."""
    shown = []
    for _ in range(min(count, scripts.SHOWN)):
        entry = _LARGE_FILE.match(answer)
        if entry is None:
            raise BadBundle("the machine's answer about large files is invalid")
        shown.append(f"{one_line(decode(entry[2]), 120)} ({int(entry[1]) >> 20} MiB)")
        answer = answer[entry.end() :]
    if not shown:
        return "", answer
    shown += [f"and {count - len(shown)} more"] if count > len(shown) else []
    files = "a file of" if count == 1 else f"{count} files of"
    return f"{files} more than {largest >> 20} MiB left out of the result: {', '.join(shown)}", answer


async def _run_collect(guest: Guest, tree: Tree, largest: int, notes: str) -> Result:
    author, limits = await identity(tree.origin), map(str, (scripts.INLINE, scripts.SHOWN, largest))
    words = (ROOT, tree.path, tree.module, tree.base, *author, MESSAGE[tree.aside], *limits, notes)
    more = ("1" if tree.aside else "", *tree.links)
    command = Command(argv=("bash", "-c", scripts.COLLECT, "hv", *words, *more), cwd="/")
    return await guest.run(command, timeout=_TIMEOUT, limit=scripts.INLINE + (64 << 10))


async def _rebuild(guest: Guest, tree: Tree) -> None:
    with tempfile.TemporaryDirectory(dir=tree.origin.parent, prefix=".push-") as scratch:
        for file in await bundle_base(tree.origin, Path(scratch)):
            await _upload(guest, file)
    words = (ROOT, tree.path, tree.base, tree.branch, await object_format(tree.origin))
    command = Command(argv=("bash", "-c", scripts.REBUILD, "hv", *words), cwd="/")
    _raise_for(await guest.run(command, timeout=_TIMEOUT, limit=64 << 10))


def _raise_for(result: Result) -> None:
    if result.ok:
        return
    error = decode(result.stderr)
    if result.status == scripts.NO_TREE:
        raise RepositoryError("the work tree is missing: the agent removed /session/repo")
    if "No space left on device" in error:
        raise GuestNoSpace(f"the work cannot be committed in the machine: {one_line(error)}")
    raise RepositoryError(f"the work cannot be committed in the machine: {one_line(error[-600:])}")


async def _upload(guest: Guest, file: Path) -> None:
    """Write a host's file of any size into the guest's /session, in pieces."""
    target = f"{ROOT}/{file.name}"
    await guest.write_atomic(target, b"")
    append = Command(argv=("bash", "-c", 'cat >>"$1"', "hv", target), cwd="/")
    with file.open("rb") as source:
        while piece := source.read(_WINDOW):
            done = await guest.run(append, stdin=piece, timeout=_TIMEOUT)
            _raise_for(done)


async def _read_bundle(guest: Guest, answer: _Answer, into: Path, limit: int) -> None:
    """Write the start of the guest's bundle and copy the rest in pieces. Raises BadBundle for more than `limit`
    bytes."""
    size, start = answer.size, answer.start
    if size > limit:
        raise BadBundle(
            f"the work has {size >> 20} MiB, but at most {limit >> 20} MiB are collected from a machine",
            hint="add files that need not be kept to .gitignore",
        )
    if len(start) > size:
        raise BadBundle(f"the machine's bundle is longer than the {size} bytes that it announced")
    path = f"{ROOT}/.result.bundle"
    with into.open("wb") as out:
        out.write(start)
        for offset in range(len(start), size, _WINDOW):
            count = min(_WINDOW, size - offset)
            flags = "iflag=skip_bytes,count_bytes,fullblock,nofollow"
            words = ("dd", f"if={path}", "bs=1M", flags, f"skip={offset}", f"count={count}", "status=none")
            got = await guest.run(Command(argv=words, cwd="/"), timeout=_TIMEOUT, limit=_WINDOW)
            if not got.ok or len(got.stdout) != count:
                raise BadBundle(f"the machine's bundle ends after {offset + len(got.stdout)} of {size} bytes")
            out.write(got.stdout)


def pack_offset(bundle: Path, *, head: str, base: str) -> int:
    """Return the offset of the pack in a bundle that has the result as its only reference. Raises BadBundle."""
    with bundle.open("rb") as file:
        start = file.read(_HEADER_LIMIT)
    top, blank, _ = start.partition(b"\n\n")
    lines = top.split(b"\n")
    if not blank or lines[0] not in (b"# v2 git bundle", b"# v3 git bundle"):
        raise BadBundle("the machine's data is not a git bundle")
    refs: list[bytes] = []
    for line in lines[1:]:
        if line.startswith(b"-"):
            continue  # a commit that it builds on; missing ones are detected after unpacking
        if line.startswith(b"@"):
            # With a filter, git would accept missing objects.
            if line not in (b"@object-format=sha1", b"@object-format=sha256"):
                raise BadBundle(f"the bundle has an unsupported capability: {one_line(decode(line))}")
            continue
        refs.append(line)
    if refs != [f"{head} {_RESULT}".encode()] or head == base:
        raise BadBundle(f"the bundle has other references than the result: {one_line(decode(b' '.join(refs)))}")
    return len(top) + len(blank)


async def _unpack(origin: Path, bundle: Path, offset: int, *, base: str, head: str, memory: int) -> None:
    """Add the objects to the repository, and check that the work is complete and builds on the base."""
    done = await index_pack(origin, bundle, offset, thin=True, memory=memory)
    if not done.ok:
        raise BadBundle(f"git rejects the machine's bundle: {pack_error(done, memory)}")
    if (await git("cat-file", "-t", head, at=origin, prefix=limit_memory(memory))).stdout != b"commit\n":
        raise BadBundle("the bundle does not contain the commit that it names")
    words = ("rev-list", "--objects", "--quiet", head, f"^{base}")
    done = await git(*words, at=origin, timeout=_TIMEOUT, prefix=limit_memory(memory))
    if not done.ok:
        raise BadBundle(f"the work is not complete: {pack_error(done, memory)}")
    if not (await git("merge-base", "--is-ancestor", base, head, at=origin, prefix=limit_memory(memory))).ok:
        raise BadBundle("the work does not build on its base")


async def _check_sizes(origin: Path, base: str, head: str, limits: _Limits) -> None:
    """Raise BadBundle if files are too large: a small bundle can contain huge ones. They are not unpacked for that."""
    more: Any = {"at": origin, "limit": 256 << 20, "prefix": limit_memory(limits.memory)}
    listed = await git("rev-list", "--objects", "--no-object-names", f"{base}..{head}", **more)
    sizes = await git("cat-file", "--batch-check=%(objectsize)", stdin=listed.stdout, **more)
    numbers = [int(word) for word in sizes.stdout.split() if word.isdigit()]
    most = limits.size
    if not listed.ok or not sizes.ok or max(numbers, default=0) > most or sum(numbers) > 4 * most:
        raise BadBundle(
            f"the work unpacks to more than is collected from a machine ({sum(numbers) >> 20} MiB)",
            hint="add files that need not be kept to .gitignore",
        )


async def _patch(changed: Sequence[Change], file: Path, limits: _Limits) -> tuple[Path | None, list[str]]:
    """Write the patch; if that fails, return None and the reason. The work is on its branch already."""
    try:
        commands = [change.words("--binary", "--full-index") for change in changed]
        with _replacing(file) as part:
            await git_to_file(*commands, file=part, limit=limits.size, prefix=limit_memory(limits.memory))
    except RepositoryError as error:
        file.unlink(missing_ok=True)
        return None, [f"there is no patch, but the branch has all of the work: {error.message}"]
    return file, []


async def _counts(change: Change, limits: _Limits) -> tuple[int, int, int]:
    """Return the numbers of files, insertions and deletions."""
    shown = await git(*change.words("--numstat"), prefix=limit_memory(limits.memory))
    files = insertions = deletions = 0
    for line in shown.stdout.splitlines():
        added, removed, *_ = line.split(b"\t")
        files += 1
        insertions += int(added) if added.isdigit() else 0
        deletions += int(removed) if removed.isdigit() else 0
    return files, insertions, deletions
