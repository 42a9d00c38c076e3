"""Take a repository's submodules: make bare copies of them beside that of the superproject.

`.gitmodules` is not trusted. Its names and paths are checked before they become paths. Its addresses are passed to git
as untrusted, so that git uses only transports that the user's configuration allows for submodules; a path of this host
is not one of them.
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
from hiveyard.repository.git import INERT_SOURCE, TRUSTED, UNTRUSTED, complaint, config, git, git_output
from hiveyard.repository.packs import LOW_MEMORY, MEMORY, limit_memory, pack_error
from hiveyard.repository.source import parse_source

BASE = "refs/hiveyard/base"
"""The reference of the base, in a bare copy and in the guest."""

MAX_COUNT, MAX_DEPTH = 256, 6
MAX_SIZE, MAX_TOTAL = 2 << 30, 4 << 30
"""Limits of one fetched submodule and of all of them together, in bytes."""

_FETCH_TIMEOUT, _TOTAL_TIMEOUT = 600.0, 1800.0
_SHOWN = 5
_DIRECTORY, _MANIFEST = "submodules", "submodules.json"
_WORD = re.compile(r"[A-Za-z0-9_+@.,= ()-]{1,128}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_LFS = re.compile(r"git-lfs (clean|smudge|filter-process)( --skip)?( -- %f)?\Z")
# Git has no limit for a fetch, so the size of a file is limited.
_BOUNDED = 'ulimit -f "$1" || exit 125; shift; exec "$@"'


class Submodule(msgspec.Struct, frozen=True, kw_only=True):
    """A submodule that was taken. `path` is below the top of the work tree; `outer` is the path of the submodule that
    contains it, or empty; `module` is the place of its repository below the top `.git`, as git names it; `commit` is
    the recorded commit; `copy` is the name of its bare copy."""

    path: str
    outer: str
    module: str
    name: str
    commit: str
    copy: str


class Link(NamedTuple):
    """A submodule in a tree: its path and commit, and its name and url from `.gitmodules`."""

    path: str
    commit: str
    name: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Superproject:
    """A repository whose submodules are taken. `copy` is the bare copy of it at `commit`; `local` is the user's work
    tree or bare repository that it came from; `address` is the base of its relative addresses."""

    copy: Path
    commit: str
    path: str = ""
    module: str = ""
    local: Path | None = None
    address: str = ""
    depth: int = 0


def submodules(origin: Path) -> list[Submodule]:
    """Return the submodules that were taken with the bare repository `origin`, each after the one that contains it."""
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
    max_size: int = MAX_SIZE,
    memory: int = MEMORY,
) -> tuple[str, ...]:
    """Make bare copies of the submodules of `base` below `origin`; return notices for the user.

    A submodule that cannot be copied, or that takes more than `max_size` bytes to fetch or `memory` bytes to read, is
    named in a notice and left out: it stays an empty directory with its commit recorded. Raises NoSpace."""
    taking = _Taking(origin, report, max_size, memory)
    todo = [Superproject(copy=origin, commit=base, local=local, address=address)]
    with anyio.move_on_after(_TOTAL_TIMEOUT) as budget:
        while todo:
            outer = todo.pop(0)
            found = [await taking.take(outer, link) for link in await links(outer.copy, outer.commit)]
            todo += [inner for inner in found if inner is not None]
    if budget.cancelled_caught:
        taking.missing.append(f"the others: fetching all of them took longer than {_TOTAL_TIMEOUT:.0f}s")
    # A submodule that was interrupted is not in the list.
    (origin / _MANIFEST).write_bytes(msgspec.json.encode(taking.found))
    return taking.notices()


async def links(repository: Path, commit: str) -> list[Link]:
    """Return the submodules that a commit records."""
    listed = await git("ls-tree", "-r", "-z", "--full-tree", commit, at=repository, prefix=limit_memory(MEMORY))
    entries = [entry.partition(b"\t") for entry in listed.stdout.split(b"\0") if entry.startswith(b"160000 ")]
    if not entries:
        return []
    modules = await _gitmodules(repository, commit)
    found = []
    for head, _, raw in entries:
        path = raw.decode("utf-8", "surrogateescape")
        name, url = modules.get(path, ("", ""))
        found.append(Link(path, head.split()[2].decode("ascii", "replace"), name, url))
    return found


async def _gitmodules(repository: Path, commit: str) -> dict[str, tuple[str, str]]:
    """Return the name and the address of each submodule in `.gitmodules`, by path."""
    words = ("config", "--no-includes", "--blob", f"{commit}:.gitmodules", "-z", "--get-regexp", r"^submodule\.")
    done = await git(*words, at=repository, limit=1 << 20, prefix=limit_memory(MEMORY))
    fields: dict[str, dict[str, str]] = {}
    for entry in done.stdout.decode("utf-8", "surrogateescape").split("\0"):
        key, _, value = entry.partition("\n")
        name, _, field = key.removeprefix("submodule.").rpartition(".")
        if name:
            fields.setdefault(name, {})[field] = value
    return {module["path"]: (name, module.get("url", "")) for name, module in fields.items() if "path" in module}


class _Taking:
    """The submodules of one repository while they are taken: those found, and those that are missing."""

    def __init__(self, origin: Path, report: Report, max_size: int, memory: int) -> None:
        self.found: list[Submodule] = []
        self.missing: list[str] = []
        self._fetched: list[str] = []
        self._changed: list[str] = []
        self._origin = origin
        self._report = report
        self._tried = 0
        self._max_size, self._remaining = max_size, MAX_TOTAL
        self._memory = memory

    async def take(self, outer: Superproject, link: Link) -> Superproject | None:
        """Take one submodule; return None if it cannot be taken."""
        path = f"{outer.path}/{link.path}" if outer.path else link.path
        try:
            return await self._take(outer, link, path)
        except (RepositoryError, BadInput) as error:
            self.missing.append(f"{_shown(path)}: {error.message}")
            return None

    async def _take(self, outer: Superproject, link: Link, path: str) -> Superproject:
        module = self._module(outer, link)
        copy = f"{len(self.found):03}"
        into = self._origin / _DIRECTORY / copy
        await anyio.to_thread.run_sync(partial(shutil.rmtree, into, ignore_errors=True))
        into.parent.mkdir(exist_ok=True)
        url = await _address(outer, link)
        local = None
        if outer.local is not None:
            local = await find_local(outer.local, link.path, f"modules/{link.name}")
        try:
            if local is not None and await _copy_local(local, into, link.commit):
                self._changed += [path] if (local / ".git").exists() and await _has_changes(local) else []
            else:
                local = None
                await self._fetch(url, into, link.commit, path)
            for key in ("hiveyard.name", "hiveyard.email"):
                await git_output("config", key, await config(self._origin, key), at=into)
            await git_output("update-ref", BASE, link.commit, at=into)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise
        self.found.append(
            Submodule(path=path, outer=outer.path, module=module, name=link.name, commit=link.commit, copy=copy)
        )
        return Superproject(
            copy=into, commit=link.commit, path=path, module=module, local=local, address=url, depth=outer.depth + 1
        )

    def _module(self, outer: Superproject, link: Link) -> str:
        """Return the place of its repository below the top `.git`. Raises RepositoryError if a path or name is not
        safe."""
        self._tried += 1
        if self._tried > MAX_COUNT or outer.depth >= MAX_DEPTH:
            raise RepositoryError(f"at most {MAX_COUNT} are taken, nested at most {MAX_DEPTH} deep")
        if not link.name:
            raise RepositoryError(".gitmodules has no entry for it")
        if not _SHA.match(link.commit) or not _is_safe(link.path) or not _is_safe(link.name):
            raise RepositoryError("its path or its name is not allowed")
        module = f"{outer.module}/modules/{link.name}" if outer.module else f"modules/{link.name}"
        for other in self.found:
            if other.outer == outer.path and (_within(other.module, module) or _within(module, other.module)):
                raise RepositoryError(f"its name collides with that of {other.path}")
        return module

    async def _fetch(self, url: str, into: Path, commit: str, path: str) -> None:
        if not url:
            raise RepositoryError("it has no address")
        self._report(f"fetching the submodule {_shown(path)}")
        kind = "sha1" if len(commit) == 40 else "sha256"
        await git_output(
            "init", "--quiet", "--bare", "--template=", f"--object-format={kind}", str(into), at=self._origin
        )
        limit = min(self._max_size, self._remaining)
        if limit <= 0:
            raise RepositoryError(f"the submodules together are larger than {MAX_TOTAL >> 30} GiB")
        done = None
        # Fetch only the commit; from a server that does not allow that, fetch all branches.
        for words in (("--depth=1", "--", url, f"{commit}:{BASE}"), ("--", url, "+refs/heads/*:refs/heads/*")):
            fetch = (*LOW_MEMORY, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *words)
            bounded = (*limit_memory(self._memory), "sh", "-c", _BOUNDED, "sh", str(limit // 512))
            done = await git(*fetch, at=into, env=UNTRUSTED, timeout=_FETCH_TIMEOUT, prefix=bounded)
            if done.ok and (await git("cat-file", "-e", f"{commit}^{{commit}}", at=into)).ok:
                self._remaining -= await anyio.to_thread.run_sync(_size, into)
                self._fetched.append(f"{_shown(path)} from {_shown(url)}")
                return
        assert done is not None
        _raise_if_full(done.stderr, into)
        if done.ok:
            raise RepositoryError(f"{_shown(url)} does not have commit {commit[:12]}")
        if b"died of signal 25" in done.stderr:
            raise RepositoryError(f"it is larger than {limit >> 20} MiB")
        raise RepositoryError(pack_error(done, self._memory))

    def notices(self) -> tuple[str, ...]:
        notices = []
        local = [_shown(submodule.path) for submodule in self.found]
        if local:
            notices.append(f"submodules were taken: {_join(local)}")
        if self._fetched:
            notices.append(f"submodules were fetched without their history: {_join(self._fetched)}")
        if self._changed:
            changed = _join(list(map(_shown, self._changed)))
            notices.append(f"uncommitted changes in submodules were left out: {changed}")
        if self.missing:
            notices.append(f"submodules were not taken and are empty in the machine: {_join(self.missing, '; ')}")
        return tuple(notices)


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer + "/")


def _is_safe(path: str) -> bool:
    """Return whether a path stays below its directory and can be an argument of a command."""
    words = path.split("/")
    return len(path) <= 1024 and all(
        _WORD.match(word) and word not in (".", "..") and not word.startswith("-") and word.strip().casefold() != ".git"
        for word in words
    )


async def _address(outer: Superproject, link: Link) -> str:
    """Return the address to fetch from: the one that the user configured, else that of `.gitmodules`; empty for none.

    Raises BadInput for an address that is not safe to pass to git, or that contains a key."""
    url = await config(outer.local, f"submodule.{link.name}.url") if outer.local is not None else ""
    url = url or link.url
    if url.startswith(("./", "../")):
        if not outer.address:
            return ""
        url = relative(outer.address, url)
    if not url:
        return ""
    if url.startswith("-") or "::" in url or any(ord(character) < 32 for character in url):
        raise BadInput(f"{_shown(url)} is not an address to fetch from")
    if "://" not in url and "@" not in url.partition(":")[0] and not url.startswith("/"):
        raise BadInput(f"{_shown(url)} is not an address to fetch from")
    if not url.startswith(("/", "file://")):
        parse_source(url)
    return url


def relative(base: str, url: str) -> str:
    """Resolve an address that is relative to that of the superproject, as git does. Raises BadInput."""
    base = base.rstrip("/")
    while True:
        if url.startswith("../"):
            url = url[3:]
            is_url = "://" in base
            cut = base.rfind("/", base.find("://") + 3) if is_url else max(base.rfind("/"), base.rfind(":"))
            if cut < 0:
                raise BadInput("its relative address has too many ../ for the address of its superproject")
            base = base[:cut] if base[cut] == "/" else base[: cut + 1]
        elif url.startswith("./"):
            url = url[2:]
        else:
            return base + url if base.endswith(":") else f"{base}/{url}"


async def find_local(outer: Path, path: str, module: str) -> Path | None:
    """Return the user's repository of a submodule, if it is in its usual place: checked out at `path` of the repository
    `outer` (a work tree or a git directory), else at `module` of its git directory."""
    tree = outer / path
    # Exclude a path through a symlink, and an empty directory, in which git finds the superproject.
    if (tree / ".git").exists() and tree.resolve() == outer.resolve() / path:
        done = await git("rev-parse", "--show-toplevel", at=tree)
        if done.ok and Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).resolve() == tree.resolve():
            return tree
    kept = outer / module
    if (outer / ".git").exists():
        done = await git("rev-parse", "--path-format=absolute", "--git-common-dir", at=outer)
        kept = Path(os.fsdecode(done.stdout.removesuffix(b"\n"))) / module
    # Git refuses to work in a repository whose work tree was removed by hand.
    usable = (kept / "HEAD").is_file() and (await git("rev-parse", "--git-dir", at=kept)).ok
    return kept if usable else None


async def _copy_local(local: Path, into: Path, commit: str) -> bool:
    """Copy the user's repository, which is only read. Returns False if it does not have the commit."""
    if not (await git("cat-file", "-e", f"{commit}^{{commit}}", at=local)).ok:
        return False
    words = ("clone", "--quiet", "--bare", "--no-recurse-submodules", "--template=", INERT_SOURCE, "--")
    done = await git(*words, str(local), str(into), env=TRUSTED, timeout=_FETCH_TIMEOUT)
    if done.ok and not (await git("cat-file", "-e", f"{commit}^{{commit}}", at=into)).ok:
        words = ("fetch", "--quiet", "--no-tags", INERT_SOURCE, "--", str(local), f"{commit}:{BASE}")
        done = await git(*words, at=into, env=TRUSTED)
    if not done.ok:
        _raise_if_full(done.stderr, into)
        raise RepositoryError(complaint(done))
    return True


async def _has_changes(local: Path) -> bool:
    words = ("status", "--porcelain", "-z", "--untracked-files=normal", "--ignore-submodules=all")
    done = await git(*await foreign_filters_off(local), *words, at=local)
    return done.ok and bool(done.stdout)


async def foreign_filters_off(top: Path) -> tuple[str, ...]:
    """Return options that disable filters of the repository's own configuration, except those of git-lfs."""
    words = ("config", "--show-scope", "--includes", "-z", "--get-regexp", r"^filter\..*\.(clean|process|smudge)$")
    done = await git(*words, at=top)
    entries = done.stdout.decode("utf-8", "replace").split("\0")
    off: list[str] = []
    for scope, entry in zip(entries[::2], entries[1::2], strict=False):
        name, _, command = entry.partition("\n")
        if scope not in ("system", "global") and not _LFS.match(command):
            driver = name.rpartition(".")[0]
            off += ["-c", f"{name}=", "-c", f"{driver}.required=false"]
    return tuple(off)


def _raise_if_full(error: bytes, where: Path) -> None:
    if b"No space left on device" in error or b"Disk quota exceeded" in error:
        raise NoSpace(f"no space for the submodules at {where}", hint=f"df -h {where}")


def _size(directory: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in directory.rglob("*") if not file.is_dir())


def _shown(text: str) -> str:
    return one_line(text.encode("utf-8", "replace").decode(), 120)


def _join(items: Sequence[str], between: str = ", ") -> str:
    more = f"{between}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return between.join(items[:_SHOWN]) + more
