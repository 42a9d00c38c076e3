"""A repository's submodules: bare copies beside the superproject's own, as far as they can be had.

What `.gitmodules` says is a stranger's: its names and paths are checked before they become paths, and its addresses are
given to git as those of a stranger, so that only transports which the user's git allows for submodules are used; a
path of this host is not one of them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from hiveyard.core.errors import BadInput, NoSpace, RepositoryError
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.text import one_line
from hiveyard.repository.git import GIVEN, INERT_SOURCE, STRANGER, answer, complaint, config, git
from hiveyard.repository.packs import FRUGAL, MEMORY, held, refusal
from hiveyard.repository.source import parse_source

BASE = "refs/hiveyard/base"
"""In a bare copy and in the guest: the commit that work started from."""

MOST, DEEPEST = 256, 6
LARGEST, ALL = 2 << 30, 4 << 30
"""Bytes of one submodule that is fetched, and of all of them together."""

_FETCH_TIMEOUT, _ALL_TIMEOUT = 600.0, 1800.0
_TOLD = 5
_DIRECTORY, _MANIFEST = "submodules", "submodules.json"
_WORD = re.compile(r"[A-Za-z0-9_+@.,= ()-]{1,128}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_LFS = re.compile(r"git-lfs (clean|smudge|filter-process)( --skip)?( -- %f)?\Z")
# A file's size is the one thing by which a fetch can be held: git has no limit of its own.
_BOUNDED = 'ulimit -f "$1" || exit 125; shift; exec "$@"'


class Submodule(msgspec.Struct, frozen=True, kw_only=True):
    """One that was had. `path` is below the top of the work tree; `outer` the path of the submodule that it is in, or
    empty; `module` its repository's place below the top `.git`, as git itself names it; `commit` what is recorded;
    `copy` the name of its bare copy."""

    path: str
    outer: str
    module: str
    name: str
    commit: str
    copy: str


class Link(NamedTuple):
    """A commit of another repository in a tree, and what `.gitmodules` says about it."""

    path: str
    commit: str
    name: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """A repository whose submodules are looked for. `copy` is our bare copy of it at `commit`; `local` a work tree or
    a bare repository of the user's that it came from; `address` where its relative addresses start."""

    copy: Path
    commit: str
    path: str = ""
    module: str = ""
    local: Path | None = None
    address: str = ""
    depth: int = 0


def submodules(origin: Path) -> list[Submodule]:
    """Those that came along into the bare repository `origin`, each after the one that it is in."""
    try:
        return msgspec.json.decode((origin / _MANIFEST).read_bytes(), type=list[Submodule])
    except FileNotFoundError:
        return []


def bare_copy(origin: Path, submodule: Submodule) -> Path:
    return origin / _DIRECTORY / submodule.copy


async def take_submodules(
    origin: Path,
    base: str,
    *,
    local: Path | None,
    address: str,
    report: Report = quiet,
    largest: int = LARGEST,
    memory: int = MEMORY,
) -> tuple[str, ...]:
    """Have bare copies of the submodules of `base` below `origin`; gives sentences for the person who asked.

    What cannot be had, or takes more than `largest` bytes to fetch or `memory` bytes to read, is told and left out: it
    stays an empty directory with its commit recorded. Raises NoSpace."""
    taking = _Taking(origin, report, largest, memory)
    todo = [Around(copy=origin, commit=base, local=local, address=address)]
    with anyio.move_on_after(_ALL_TIMEOUT) as budget:
        while todo:
            around = todo.pop(0)
            found = [await taking.one(around, link) for link in await links(around.copy, around.commit)]
            todo += [inner for inner in found if inner is not None]
    if budget.cancelled_caught:
        taking.missing.append(f"the rest: fetching all of them took longer than {_ALL_TIMEOUT:.0f}s")
    # Each is complete, and so is the list: what was cut off is in neither.
    (origin / _MANIFEST).write_bytes(msgspec.json.encode(taking.found))
    return taking.notices()


async def links(repository: Path, commit: str) -> list[Link]:
    """The submodules that a commit records, with what is said about them there."""
    listed = await git("ls-tree", "-r", "-z", "--full-tree", commit, at=repository, prefix=held(MEMORY))
    entries = [entry.partition(b"\t") for entry in listed.stdout.split(b"\0") if entry.startswith(b"160000 ")]
    if not entries:
        return []
    said = await _gitmodules(repository, commit)
    found = []
    for head, _, raw in entries:
        path = raw.decode("utf-8", "surrogateescape")
        name, url = said.get(path, ("", ""))
        found.append(Link(path, head.split()[2].decode("ascii", "replace"), name, url))
    return found


async def _gitmodules(repository: Path, commit: str) -> dict[str, tuple[str, str]]:
    """Name and address by path."""
    words = ("config", "--no-includes", "--blob", f"{commit}:.gitmodules", "-z", "--get-regexp", r"^submodule\.")
    done = await git(*words, at=repository, limit=1 << 20, prefix=held(MEMORY))
    fields: dict[str, dict[str, str]] = {}
    for entry in done.stdout.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = entry.partition("\n")
        name, _, field = key.removeprefix("submodule.").rpartition(".")
        if name:
            fields.setdefault(name, {})[field] = value
    return {said["path"]: (name, said.get("url", "")) for name, said in fields.items() if "path" in said}


class _Taking:
    """One taking: what was had so far, and what was not."""

    def __init__(self, origin: Path, report: Report, largest: int, memory: int) -> None:
        self.found: list[Submodule] = []
        self.missing: list[str] = []
        self._fetched: list[str] = []
        self._changed: list[str] = []
        self._origin = origin
        self._report = report
        self._tried = 0
        self._largest, self._room = largest, ALL
        self._memory = memory

    async def one(self, around: Around, link: Link) -> Around | None:
        """Have one; None when it cannot be had."""
        path = f"{around.path}/{link.path}" if around.path else link.path
        try:
            return await self._one(around, link, path)
        except (RepositoryError, BadInput) as error:
            self.missing.append(f"{_shown(path)}: {error.message}")
            return None

    async def _one(self, around: Around, link: Link, path: str) -> Around:
        module = self._checked(around, link)
        copy = f"{len(self.found):03}"
        into = self._origin / _DIRECTORY / copy
        await anyio.to_thread.run_sync(partial(shutil.rmtree, into, ignore_errors=True))
        into.parent.mkdir(exist_ok=True)
        url = await _address(around, link)
        local = None
        if around.local is not None:
            local = await find_local(around.local, link.path, f"modules/{link.name}")
        try:
            if local is not None and await _copied(local, into, link.commit):
                self._changed += [path] if (local / ".git").exists() and await _has_changes(local) else []
            else:
                local = None
                await self._fetch(url, into, link.commit, path)
            for key in ("hiveyard.name", "hiveyard.email"):
                await answer("config", key, await config(self._origin, key), at=into)
            await answer("update-ref", BASE, link.commit, at=into)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        self.found.append(
            Submodule(path=path, outer=around.path, module=module, name=link.name, commit=link.commit, copy=copy)
        )
        return Around(
            copy=into, commit=link.commit, path=path, module=module, local=local, address=url, depth=around.depth + 1
        )

    def _checked(self, around: Around, link: Link) -> str:
        """Where its repository goes below the top `.git`. Raises RepositoryError for what may not become a path."""
        self._tried += 1
        if self._tried > MOST or around.depth >= DEEPEST:
            raise RepositoryError(f"at most {MOST} come along, in each other at most {DEEPEST} deep")
        if not link.name:
            raise RepositoryError(".gitmodules says nothing about it")
        if not _SHA.match(link.commit) or not _plain(link.path) or not _plain(link.name):
            raise RepositoryError("its path or its name is not one that is used")
        module = f"{around.module}/modules/{link.name}" if around.module else f"modules/{link.name}"
        for other in self.found:
            if other.outer == around.path and (_within(other.module, module) or _within(module, other.module)):
                raise RepositoryError(f"its name collides with that of {other.path}")
        return module

    async def _fetch(self, url: str, into: Path, commit: str, path: str) -> None:
        if not url:
            raise RepositoryError("it has no address")
        self._report(f"fetching the submodule {_shown(path)}")
        kind = "sha1" if len(commit) == 40 else "sha256"
        await answer("init", "--quiet", "--bare", "--template=", f"--object-format={kind}", str(into), at=self._origin)
        room = min(self._largest, self._room)
        if room <= 0:
            raise RepositoryError(f"all that were fetched are larger than {ALL >> 30} GiB")
        done = None
        # The commit alone; a server that does not give single commits gives all branches.
        for words in (("--depth=1", "--", url, f"{commit}:{BASE}"), ("--", url, "+refs/heads/*:refs/heads/*")):
            fetch = (*FRUGAL, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *words)
            bounded = (*held(self._memory), "sh", "-c", _BOUNDED, "sh", str(room // 512))
            done = await git(*fetch, at=into, env=STRANGER, timeout=_FETCH_TIMEOUT, prefix=bounded)
            if done.ok and (await git("cat-file", "-e", f"{commit}^{{commit}}", at=into)).ok:
                self._room -= await anyio.to_thread.run_sync(_size, into)
                self._fetched.append(f"{_shown(path)} from {_shown(url)}")
                return
        assert done is not None
        _raise_full(done.stderr, into)
        if done.ok:
            raise RepositoryError(f"{_shown(url)} does not have commit {commit[:12]}")
        if b"died of signal 25" in done.stderr:
            raise RepositoryError(f"it is larger than {room >> 20} MiB")
        raise RepositoryError(refusal(done, self._memory))

    def notices(self) -> tuple[str, ...]:
        said = []
        local = [_shown(one.path) for one in self.found]
        if local:
            said.append(f"submodules came along: {_some(local)}")
        if self._fetched:
            said.append(f"submodules were fetched without their history: {_some(self._fetched)}")
        if self._changed:
            said.append(f"uncommitted changes in submodules were left out: {_some(list(map(_shown, self._changed)))}")
        if self.missing:
            said.append(f"submodules that stay as recorded and are empty in the machine: {_some(self.missing, '; ')}")
        return tuple(said)


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")


def _plain(path: str) -> bool:
    """Whether a path can go on a disk and into a shell's argv, below the directory that it is meant for."""
    words = path.split("/")
    return len(path) <= 1024 and all(
        _WORD.match(word) and word not in (".", "..") and not word.startswith("-") and word.strip().casefold() != ".git"
        for word in words
    )


async def _address(around: Around, link: Link) -> str:
    """What to fetch from: what the user set, else what `.gitmodules` says; empty for none.

    Raises BadInput for what git could not be given safely or would show a key."""
    url = await config(around.local, f"submodule.{link.name}.url") if around.local is not None else ""
    url = url or link.url
    if url.startswith(("./", "../")):
        if not around.address:
            return ""
        url = relative(around.address, url)
    if not url:
        return ""
    if url.startswith("-") or "::" in url or any(ord(character) < 32 for character in url):
        raise BadInput(f"{_shown(url)} is no address to fetch from")
    if "://" not in url and "@" not in url.partition(":")[0] and not url.startswith("/"):
        raise BadInput(f"{_shown(url)} is no address to fetch from")
    if not url.startswith(("/", "file://")):
        parse_source(url)
    return url


def relative(base: str, url: str) -> str:
    """An address relative to that of the repository around it, as git reads it."""
    base = base.rstrip("/")
    while True:
        if url.startswith("../"):
            url = url[3:]
            whole = "://" in base
            cut = base.rfind("/", base.find("://") + 3) if whole else max(base.rfind("/"), base.rfind(":"))
            if cut < 0:
                raise BadInput("its address leads out of that of the repository around it")
            base = base[:cut] if base[cut] == "/" else base[: cut + 1]
        elif url.startswith("./"):
            url = url[2:]
        else:
            return base + url if base.endswith(":") else f"{base}/{url}"


async def find_local(around: Path, path: str, module: str) -> Path | None:
    """The user's own repository of a submodule, when it is on this host and where it has to be: checked out at `path`
    of the repository `around` (a work tree or a git directory), else kept at `module` of its git directory."""
    tree = around / path
    # A symlink on the way, or an empty directory in which git finds the repository around it, is something else.
    if (tree / ".git").exists() and tree.resolve() == around.resolve() / path:
        done = await git("rev-parse", "--show-toplevel", at=tree)
        if done.ok and Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).resolve() == tree.resolve():
            return tree
    kept = around / module
    if (around / ".git").exists():
        done = await git("rev-parse", "--path-format=absolute", "--git-common-dir", at=around)
        kept = Path(os.fsdecode(done.stdout.removesuffix(b"\n"))) / module
    # Git works in one whose work tree was removed by hand as little as we could.
    usable = (kept / "HEAD").is_file() and (await git("rev-parse", "--git-dir", at=kept)).ok
    return kept if usable else None


async def _copied(local: Path, into: Path, commit: str) -> bool:
    """Copy the user's own repository, which is only read; False when it does not have the commit."""
    if not (await git("cat-file", "-e", f"{commit}^{{commit}}", at=local)).ok:
        return False
    words = ("clone", "--quiet", "--bare", "--no-recurse-submodules", "--template=", INERT_SOURCE, "--")
    done = await git(*words, str(local), str(into), env=GIVEN, timeout=_FETCH_TIMEOUT)
    if done.ok and not (await git("cat-file", "-e", f"{commit}^{{commit}}", at=into)).ok:
        words = ("fetch", "--quiet", "--no-tags", INERT_SOURCE, "--", str(local), f"{commit}:{BASE}")
        done = await git(*words, at=into, env=GIVEN)
    if not done.ok:
        _raise_full(done.stderr, into)
        raise RepositoryError(complaint(done))
    return True


async def _has_changes(local: Path) -> bool:
    words = ("status", "--porcelain", "-z", "--untracked-files=normal", "--ignore-submodules=all")
    done = await git(*await foreign_filters_off(local), *words, at=local)
    return done.ok and bool(done.stdout)


async def foreign_filters_off(top: Path) -> tuple[str, ...]:
    """Options against filters that the repository's own configuration brings; git-lfs keeps its pointers by one."""
    words = ("config", "--show-scope", "--includes", "-z", "--get-regexp", r"^filter\..*\.(clean|process|smudge)$")
    done = await git(*words, at=top)
    said = done.stdout.decode("utf-8", "replace").split("\0")
    off: list[str] = []
    for scope, entry in zip(said[::2], said[1::2], strict=False):
        name, _, command = entry.partition("\n")
        if scope not in ("system", "global") and not _LFS.match(command):
            driver = name.rpartition(".")[0]
            off += ["-c", f"{name}=", "-c", f"{driver}.required=false"]
    return tuple(off)


def _raise_full(said: bytes, where: Path) -> None:
    if b"No space left on device" in said or b"Disk quota exceeded" in said:
        raise NoSpace(f"no space for the submodules at {where}", hint=f"df -h {where}")


def _size(directory: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in directory.rglob("*") if not file.is_dir())


def _shown(text: str) -> str:
    return one_line(text.encode("utf-8", "replace").decode(), 120)


def _some(items: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(items) - _TOLD} more" if len(items) > _TOLD else ""
    return between.join(items[:_TOLD]) + more
