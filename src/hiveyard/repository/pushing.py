"""Giving the work to a guest: the base with its history becomes a repository there, on a branch of its own.

The repository is made on the host, in a directory of our own, and handed over as one tar file: the guest, which may be
emulated, only unpacks it and checks the files out. The file is put into the session's shared directory from the host's
side. Nothing that the guest has there is followed or believed: it is made anew, by name, without crossing a symlink.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import anyio.to_thread

from hiveyard.core.commands import Command
from hiveyard.core.errors import GuestNoSpace, RepositoryError
from hiveyard.core.machines import Report, quiet
from hiveyard.core.ports import Guest
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.kit.text import decode, one_line
from hiveyard.repository import scripts
from hiveyard.repository.git import GIVEN, answer, complaint, config, git
from hiveyard.repository.submodules import BASE, Submodule, bare_copy, submodules
from hiveyard.repository.taking import identity

ROOT = "/session"
TAR, BUNDLE, SHALLOW = "origin.tar", "origin.bundle", "origin.shallow"
_TIMEOUT = 3600.0


class Part(NamedTuple):
    """A file or a tree of ours, and its place in the guest's work tree."""

    place: str
    source: Path


async def push(guest: Guest, origin: Path, shared: Path, *, base: str, branch: str, report: Report = quiet) -> None:
    """Make `/session/repo` in the guest, on `branch` at `base`, with the history and the tags that belong to it.

    Repeating it does what is missing: a repository that is there stays as it is. `shared` is the host's side of
    `/session`. Raises RepositoryError, GuestNoSpace and what the guest raises."""
    if not os.path.lexists(shared / "repo"):
        with tempfile.TemporaryDirectory(dir=origin.parent, prefix=".push-") as scratch:
            async with measured(report, "packing the repository", partial(disk_usage, Path(scratch))):
                parts = await _parts(origin, Path(scratch), base, branch)
            async with measured(report, "giving the repository to the machine", partial(disk_usage, shared / TAR)):
                await anyio.to_thread.run_sync(_put, parts, shared, TAR)
    paths = [submodule.path for submodule in submodules(origin)]
    command = Command(argv=("bash", "-c", scripts.PUSH, "hv", ROOT, *paths), cwd="/")
    async with measured(report, "checking out files in the machine", partial(disk_usage, shared / "repo")):
        result = await guest.run(command, timeout=_TIMEOUT, limit=1 << 20)
    if not result.ok:
        said = decode(result.stderr)
        if "No space left on device" in said:
            raise GuestNoSpace(f"the repository does not fit into the machine: {one_line(said)}")
        raise RepositoryError(f"the repository could not be set up in the machine: {one_line(said[-600:])}")


async def _parts(origin: Path, scratch: Path, base: str, branch: str) -> list[Part]:
    """The guest's `.git`, then of each submodule the repository and the file in its work tree that leads there."""
    inner = submodules(origin)
    configuration = await _configuration(origin, _modules(inner, ""))
    parts = [Part(".git", await _repository(origin, scratch / "top", base, branch, configuration))]
    for one in inner:
        copy, place = bare_copy(origin, one), scratch / one.copy
        module = Path(".git", one.module)
        tree = os.path.relpath(one.path, module)
        configuration = await _configuration(copy, _modules(inner, one.path), tree)
        parts.append(Part(str(module), await _repository(copy, place, one.commit, None, configuration)))
        link = place / "link"
        link.write_text(f"gitdir: {os.path.relpath(module, one.path)}\n", encoding="utf-8")
        parts.append(Part(f"{one.path}/.git", link))
    return parts


async def _repository(origin: Path, scratch: Path, base: str, branch: str | None, configuration: str) -> Path:
    """A `.git` for the guest, without an index, on `branch` at `base`; None is no branch."""
    made = scratch / "repo" / ".git"
    scratch.mkdir()
    kind = await object_format(origin)
    # A guest's git may be older than the host's: references are files, as they were for twenty years.
    words = ("init", "--quiet", "--template=", f"--object-format={kind}", f"--initial-branch={branch or 'main'}")
    await answer(*words, str(made.parent), at=scratch, env={"GIT_DEFAULT_REF_FORMAT": "files"})
    bundle, *shallow = await bundle_base(origin, scratch)
    for file in shallow:
        file.rename(made / "shallow")
    refs = (f"{BASE}:{BASE}", "refs/tags/*:refs/tags/*")
    fetch = ("-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-write-fetch-head", str(bundle), *refs)
    await answer(*fetch, at=made.parent, env=GIVEN)
    bundle.unlink()
    move = f"create refs/heads/{branch} {base}" if branch else f"option no-deref\nupdate HEAD {base}"
    moves = [f"verify {BASE} {base}", move]
    if ref := await config(origin, "hiveyard.baseref"):
        moves.append(f"create refs/remotes/origin/{ref} {base}")
    await answer("update-ref", "--stdin", at=made.parent, stdin="\n".join([*moves, ""]).encode())
    await answer("pack-refs", "--all", at=made.parent)
    (made / "config").write_text(configuration, encoding="utf-8")
    return made


async def _configuration(origin: Path, active: Sequence[str], tree: str = "") -> str:
    """For a Linux guest, whatever the host's file system is like. `active` are names of submodules, `tree` is where
    the work tree is when it is not around the repository."""
    kind, (name, email) = await object_format(origin), await identity(origin)
    version = "0" if kind == "sha1" else "1"
    lines = ["[core]", f"\trepositoryformatversion = {version}", "\tfilemode = true", "\tbare = false"]
    lines += [f"\tworktree = {_quoted(tree)}"] if tree else []
    lines += ["\tlogallrefupdates = true", "[user]", f"\tname = {_quoted(name)}", f"\temail = {_quoted(email)}"]
    if kind != "sha1":
        lines += ["[extensions]", f"\tobjectformat = {kind}"]
    for submodule in active:
        lines += [f"[submodule {_quoted(submodule)}]", "\tactive = true"]
    return "\n".join([*lines, ""])


def _modules(inner: Sequence[Submodule], outer: str) -> list[str]:
    return [one.name for one in inner if one.outer == outer]


def _quoted(value: str) -> str:
    plain = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}"'


async def bundle_base(origin: Path, into: Path) -> list[Path]:
    """The base with its history and tags as a bundle, and the list of where a shallow history ends, if it does."""
    bundle, shallow = into / BUNDLE, into / SHALLOW
    tags = await answer("for-each-ref", "--format=%(refname)", f"--merged={BASE}", "refs/tags", at=origin)
    refs = "\n".join([BASE, *tags.splitlines(), ""]).encode("utf-8", "surrogateescape")
    done = await git("bundle", "create", "--quiet", str(bundle), "--stdin", at=origin, stdin=refs)
    if not done.ok:
        raise RepositoryError(f"the repository's history is not complete: {complaint(done)}")
    if (origin / "shallow").exists():
        shutil.copyfile(origin / "shallow", shallow)
        return [bundle, shallow]
    return [bundle]


async def object_format(origin: Path) -> str:
    """`sha1` or `sha256`."""
    return await answer("rev-parse", "--show-object-format", at=origin)


def _put(parts: Sequence[Part], directory: Path, name: str) -> None:
    """A tar of `parts` in a directory that a guest can write, whatever the guest may have put there by that name."""
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise RepositoryError(f"the machine put a directory in the place of {name}") from None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o644, dir_fd=at), "wb") as target:
            os.fchmod(target.fileno(), 0o644)
            _tar(parts, target)
    finally:
        os.close(at)


def _tar(parts: Sequence[Part], target: BinaryIO) -> None:
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for part in parts:
            tar.add(part.source, arcname=part.place)
