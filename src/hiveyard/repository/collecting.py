"""Bringing an agent's work out of a guest, as a bundle of which nothing is believed until git has checked it.

The host never runs git where a guest can write. What comes out is one file of bounded size; its header is read here,
its objects are checked by git (fsck) on their way into the host's own bare repository, and all that is told about the
work (commits, counts, patch) is worked out from there.
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
from hiveyard.repository.diff import Change, astray, changes
from hiveyard.repository.git import answer, git, git_to_file
from hiveyard.repository.packs import MEMORY, held, refusal, take_in
from hiveyard.repository.pushing import ROOT, bundle_base, object_format
from hiveyard.repository.source import check_branch_name
from hiveyard.repository.submodules import Submodule, bare_copy, submodules
from hiveyard.repository.taking import identity

MESSAGE = {
    False: "Work that was left uncommitted\n\nCommitted by Hiveyard when the agent had ended.\n",
    True: "Work that was left uncommitted\n\nCommitted by Hiveyard beside the repository, which knows nothing of it.\n",
}
"""Of the commit of what is left, by whether that is kept aside of the guest's repository."""

PATCH, BUNDLE = "changes.patch", "work.bundle"
LIMIT = 1 << 30
"""Most bytes of a bundle, of a patch and of one file in the work."""
LARGEST = 512 << 20
"""Bytes above which a file that is not committed is left out of the work."""

_RESULT = "refs/hiveyard/result"
_WINDOW = 32 << 20
_TIMEOUT = 3600.0
_HEADER_LIMIT = 64 << 10
_ANSWER = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64}) (\d{1,15}) (\d{1,9}) ([a-z]{0,20})\.\Z")
_LARGE_FILE = re.compile(rb"(\d{1,19})/([^\0]{1,4096})\0")
_NOTES = {
    "r": "the repository in the machine was unusable: the work is one commit, made from its files",
    "m": "a merge or rebase was in progress: the work is what its files were then",
    "n": "a repository inside the repository was taken as plain files",
    "u": "some files could not be read and are not in the work",
    "b": "the work was on a branch that was not checked out",
    "h": "the history that the work began from was rewritten: the work is one commit on top of it",
}


class Tree(NamedTuple):
    """A work tree in the guest, `path` below `/session`, of which `origin` is the host's bare repository; a submodule's
    own repository is at `module` there. `aside`: the guest's own repositories stay as they are; `links` are then what
    was brought out of the submodules in it, as `COMMIT PATH`."""

    origin: Path
    path: str
    base: str
    branch: str
    module: str = ""
    aside: bool = False
    links: tuple[str, ...] = ()


class _Bounds(NamedTuple):
    """Limits in bytes: `size` of a bundle, a patch or a file, `memory` of a git process that reads them, `largest` of
    a file that is not committed."""

    size: int
    memory: int
    largest: int


class _Said(NamedTuple):
    """The guest's answer: the commit, the size of its bundle, notes, as much of the bundle as came along, and a notice
    about files that were left out because they are large."""

    head: str
    size: int
    notes: str
    begun: bytes
    large: str = ""


class Collected(NamedTuple):
    """The work, on the host. `commits` 0: there is none, `head` is the base and `patch` and `bundle` are None; `patch`
    is None too when there could be none.

    `leftover` tells that the last commit was made from what the agent left uncommitted. `patch` is for `git apply`.
    The counts and the patch are those of submodules too."""

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
    """Commit what is left in the guest's `/session/repo` and bring it to `branch` of the host's bare `origin`.

    With `aside` the repository in there stays as it is, index and branches too: somebody may be at work in it.
    Writes `changes.patch` and `work.bundle` into `result`, and the bundles of submodules into `result/submodules`.
    Safe to repeat. Raises BadBundle for what comes out and is not what it should be, is larger than `limit` bytes or
    takes more than `memory` bytes to read, RepositoryError, GuestNoSpace and what the guest raises."""
    await check_branch_name(branch)
    bounds = _Bounds(limit, memory, largest)
    result.mkdir(parents=True, exist_ok=True)
    bundle = result / BUNDLE
    async with measured(report, "reading the work out of the machine", partial(disk_usage, *_parts(result, origin))):
        links, notices = await _submodules(guest, origin, result, branch, bounds, aside)
        said = await _bring(guest, Tree(origin, "repo", base, branch, "", aside, links), bundle, bounds)
    notices = [*_told(said), *notices]
    if said.head == base:
        return Collected(base, 0, 0, 0, 0, False, None, None, tuple(notices))
    notices += await astray(origin, base, said.head, branch)
    commits = int(await answer("rev-list", "--count", f"{base}..{said.head}", at=origin))
    pieces = await changes(origin, base, said.head, branch)
    counts = [await _counts(piece, bounds) for piece in pieces]
    patch, problems = await _patch(pieces, result / PATCH, bounds)
    notices += problems
    files, insertions, deletions = (sum(numbers) for numbers in zip(*counts, strict=True))
    leftover = "l" in said.notes
    return Collected(said.head, commits, files, insertions, deletions, leftover, patch, bundle, tuple(notices))


async def _submodules(
    guest: Guest, origin: Path, result: Path, branch: str, bounds: _Bounds, aside: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Bring the work of all submodules, from the inside out: each repository records the commit of what is in it.
    Returns the links of the outermost, and what is to be told."""
    links: dict[str, list[str]] = {}
    notices: list[str] = []
    for one in reversed(submodules(origin)):
        copy, module, inner = bare_copy(origin, one), f"repo/.git/{one.module}", tuple(links.get(one.path, ()))
        tree = Tree(copy, f"repo/{one.path}", one.commit, branch, module, aside, inner)
        head, said = await _submodule(guest, tree, one, result / "submodules" / one.copy, bounds)
        notices += said
        if aside and head is not None:
            links.setdefault(one.outer, []).append(f"{head} {one.path.removeprefix(one.outer).lstrip('/')}")
    return tuple(links.get("", ())), notices


async def _submodule(
    guest: Guest, tree: Tree, one: Submodule, result: Path, bounds: _Bounds
) -> tuple[str | None, list[str]]:
    """Bring a submodule's work; what cannot be brought is told and does not hold up the rest. Returns its commit."""
    result.mkdir(parents=True, exist_ok=True)
    try:
        said = await _bring(guest, tree, result / BUNDLE, bounds)
    except RepositoryError as error:
        return None, [f"the work in the submodule {one.path} did not come along: {error.message}"]
    return said.head, [f"submodule {one.path}: {note}" for note in _told(said)]


def _told(said: _Said) -> list[str]:
    notes = [_NOTES[note] for note in dict.fromkeys(said.notes) if note in _NOTES]
    return [*notes, *([said.large] if said.large else [])]


async def _bring(guest: Guest, tree: Tree, bundle: Path, bounds: _Bounds) -> _Said:
    """Have the tree's work in its bare repository, on its branch, and in `bundle` when there is any."""
    said = await _commit_leftover(guest, tree, bounds.largest)
    if said.size == 0:
        await _move(tree, tree.base)
        return said._replace(head=tree.base)
    with _whole(bundle) as part:
        await _read_out(guest, said, part, bounds.size)
        pack = pack_offset(part, head=said.head, base=tree.base)
        await _unpack(tree.origin, part, pack, base=tree.base, head=said.head, memory=bounds.memory)
        await _check_sizes(tree.origin, tree.base, said.head, bounds)
    await _move(tree, said.head)
    if len(said.begun) < said.size:
        await guest.remove(f"{ROOT}/.result.bundle")
    return said


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def _parts(result: Path, origin: Path) -> list[Path]:
    """The bundles that are being written, of submodules too."""
    inner = [result / "submodules" / one.copy for one in submodules(origin)]
    return [_part(directory / BUNDLE) for directory in (*inner, result)]


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Where to write what becomes `file` at the end of the block: who reads that meanwhile has the former one."""
    part = _part(file)
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


async def _move(tree: Tree, head: str) -> None:
    """The log of the branch tells what has ever been given out as it."""
    ref = f"refs/heads/{tree.branch}"
    words = ("update-ref", "--create-reflog", ref, head)
    # One of us at a time moves it: a lock that is there is that of a git that was killed.
    (tree.origin / f"{ref}.lock").unlink(missing_ok=True)
    if (await git(*words, at=tree.origin)).ok:
        return
    # What is in its way are copies of a person's branches, of use to nobody; the work is here once.
    for name in await heads(tree.origin):
        if name != tree.branch and collide(name, tree.branch):
            await git("update-ref", "-d", f"refs/heads/{name}", at=tree.origin)
    await answer(*words, at=tree.origin)


async def _commit_leftover(guest: Guest, tree: Tree, largest: int) -> _Said:
    """Rebuilds the guest's repository when git cannot use it."""
    said = await _ask_to_collect(guest, tree, largest, "")
    if said.status == scripts.BROKEN and not tree.aside:
        await _rebuild(guest, tree)
        said = await _ask_to_collect(guest, tree, largest, "r")
    if tree.module and said.status in (scripts.NO_TREE, scripts.NO_SUBMODULE):
        return _Said(tree.base, 0, "", b"")  # it was removed, or its files are those of the repository around it now
    _raise_for(said)
    line, _, begun = said.stdout.partition(b"\n")
    match = _ANSWER.match(decode(line))
    if match is None:
        raise BadBundle(f"the machine's answer about the work makes no sense: {one_line(decode(line))}")
    large, begun = _large_files(int(match[3]), begun, largest)
    return _Said(match[1], int(match[2]), match[4], begun, large)


def _large_files(count: int, answer: bytes, largest: int) -> tuple[str, bytes]:
    """Return the notice about files that were left out, and the rest of the answer. Raises BadBundle."""
    shown = []
    for _ in range(min(count, scripts.SHOWN)):
        entry = _LARGE_FILE.match(answer)
        if entry is None:
            raise BadBundle("the machine's answer about large files makes no sense")
        shown.append(f"{one_line(decode(entry[2]), 120)} ({int(entry[1]) >> 20} MiB)")
        answer = answer[entry.end() :]
    if not shown:
        return "", answer
    shown += [f"and {count - len(shown)} more"] if count > len(shown) else []
    files = "a file of" if count == 1 else f"{count} files of"
    return f"{files} more than {largest >> 20} MiB left out of the result: {', '.join(shown)}", answer


async def _ask_to_collect(guest: Guest, tree: Tree, largest: int, notes: str) -> Result:
    person, limits = await identity(tree.origin), map(str, (scripts.INLINE, scripts.SHOWN, largest))
    words = (ROOT, tree.path, tree.module, tree.base, *person, MESSAGE[tree.aside], *limits, notes)
    more = ("1" if tree.aside else "", *tree.links)
    command = Command(argv=("bash", "-c", scripts.COLLECT, "hv", *words, *more), cwd="/")
    return await guest.run(command, timeout=_TIMEOUT, limit=scripts.INLINE + (64 << 10))


async def _rebuild(guest: Guest, tree: Tree) -> None:
    with tempfile.TemporaryDirectory(dir=tree.origin.parent, prefix=".push-") as scratch:
        for file in await bundle_base(tree.origin, Path(scratch)):
            await _give(guest, file)
    words = (ROOT, tree.path, tree.base, tree.branch, await object_format(tree.origin))
    command = Command(argv=("bash", "-c", scripts.REBUILD, "hv", *words), cwd="/")
    _raise_for(await guest.run(command, timeout=_TIMEOUT, limit=64 << 10))


def _raise_for(said: Result) -> None:
    if said.ok:
        return
    words = decode(said.stderr)
    if said.status == scripts.NO_TREE:
        raise RepositoryError("the work tree is gone: the agent removed /session/repo")
    if "No space left on device" in words:
        raise GuestNoSpace(f"the work cannot be committed in the machine: {one_line(words)}")
    raise RepositoryError(f"the work cannot be committed in the machine: {one_line(words[-600:])}")


async def _give(guest: Guest, file: Path) -> None:
    """Write a host's file of any size into the guest's /session, a window at a time."""
    target = f"{ROOT}/{file.name}"
    await guest.write_atomic(target, b"")
    append = Command(argv=("bash", "-c", 'cat >>"$1"', "hv", target), cwd="/")
    with file.open("rb") as source:
        while piece := source.read(_WINDOW):
            done = await guest.run(append, stdin=piece, timeout=_TIMEOUT)
            _raise_for(done)


async def _read_out(guest: Guest, said: _Said, into: Path, limit: int) -> None:
    """Copy what is missing of the guest's bundle behind what we have, never more than `limit` bytes and a window at a
    time."""
    size, begun = said.size, said.begun
    if size > limit:
        raise BadBundle(
            f"the work is {size >> 20} MiB large, at most {limit >> 20} MiB are taken out of a machine",
            hint="add what need not be kept to .gitignore",
        )
    if len(begun) > size:
        raise BadBundle(f"the machine's bundle goes on after {size} bytes")
    path = f"{ROOT}/.result.bundle"
    with into.open("wb") as out:
        out.write(begun)
        for start in range(len(begun), size, _WINDOW):
            want = min(_WINDOW, size - start)
            flags = "iflag=skip_bytes,count_bytes,fullblock,nofollow"
            words = ("dd", f"if={path}", "bs=1M", flags, f"skip={start}", f"count={want}", "status=none")
            got = await guest.run(Command(argv=words, cwd="/"), timeout=_TIMEOUT, limit=_WINDOW)
            if not got.ok or len(got.stdout) != want:
                raise BadBundle(f"the machine's bundle ends after {start + len(got.stdout)} of {size} bytes")
            out.write(got.stdout)


def pack_offset(bundle: Path, *, head: str, base: str) -> int:
    """Where the pack begins in a bundle that holds the result and nothing else. Raises BadBundle for any other."""
    with bundle.open("rb") as file:
        start = file.read(_HEADER_LIMIT)
    top, blank, _ = start.partition(b"\n\n")
    lines = top.split(b"\n")
    if not blank or lines[0] not in (b"# v2 git bundle", b"# v3 git bundle"):
        raise BadBundle("what came out of the machine is no git bundle")
    refs: list[bytes] = []
    for line in lines[1:]:
        if line.startswith(b"-"):
            continue  # a commit it builds on; whether all that it needs is here is found out after unpacking
        if line.startswith(b"@"):
            # A filter would make git believe that missing objects are missing on purpose.
            if line not in (b"@object-format=sha1", b"@object-format=sha256"):
                raise BadBundle(f"the bundle asks for what bundles need not: {one_line(decode(line))}")
            continue
        refs.append(line)
    if refs != [f"{head} {_RESULT}".encode()] or head == base:
        raise BadBundle(f"the bundle holds other references than the result: {one_line(decode(b' '.join(refs)))}")
    return len(top) + len(blank)


async def _unpack(origin: Path, bundle: Path, offset: int, *, base: str, head: str, memory: int) -> None:
    """Take the objects in, and make sure that they are the work: all of it, and on top of the base."""
    done = await take_in(origin, bundle, offset, thin=True, memory=memory)
    if not done.ok:
        raise BadBundle(f"git refuses what came out of the machine: {refusal(done, memory)}")
    if (await git("cat-file", "-t", head, at=origin, prefix=held(memory))).stdout != b"commit\n":
        raise BadBundle("the bundle does not hold the commit that it names")
    words = ("rev-list", "--objects", "--quiet", head, f"^{base}")
    done = await git(*words, at=origin, timeout=_TIMEOUT, prefix=held(memory))
    if not done.ok:
        raise BadBundle(f"the work is not complete: {refusal(done, memory)}")
    if not (await git("merge-base", "--is-ancestor", base, head, at=origin, prefix=held(memory))).ok:
        raise BadBundle("the work does not build on the commit that it began from")


async def _check_sizes(origin: Path, base: str, head: str, bounds: _Bounds) -> None:
    """A small bundle can hold huge files: they are not unpacked to find out."""
    more: Any = {"at": origin, "limit": 256 << 20, "prefix": held(bounds.memory)}
    listed = await git("rev-list", "--objects", "--no-object-names", f"{base}..{head}", **more)
    sizes = await git("cat-file", "--batch-check=%(objectsize)", stdin=listed.stdout, **more)
    numbers = [int(word) for word in sizes.stdout.split() if word.isdigit()]
    most = bounds.size
    if not listed.ok or not sizes.ok or max(numbers, default=0) > most or sum(numbers) > 4 * most:
        raise BadBundle(
            f"the work unpacks to more than is taken out of a machine ({sum(numbers) >> 20} MiB)",
            hint="add what need not be kept to .gitignore",
        )


async def _patch(pieces: Sequence[Change], file: Path, bounds: _Bounds) -> tuple[Path | None, list[str]]:
    """The patch, or None and why there is none: the work is on its branch by then, and stays."""
    try:
        asked = [piece.words("--binary", "--full-index") for piece in pieces]
        with _whole(file) as part:
            await git_to_file(*asked, file=part, limit=bounds.size, prefix=held(bounds.memory))
    except RepositoryError as error:
        file.unlink(missing_ok=True)
        return None, [f"there is no patch of the work, the branch has all of it: {error.message}"]
    return file, []


async def _counts(piece: Change, bounds: _Bounds) -> tuple[int, int, int]:
    shown = await git(*piece.words("--numstat"), prefix=held(bounds.memory))
    files = insertions = deletions = 0
    for line in shown.stdout.splitlines():
        added, removed, *_ = line.split(b"\t")
        files += 1
        insertions += int(added) if added.isdigit() else 0
        deletions += int(removed) if removed.isdigit() else 0
    return files, insertions, deletions
