"""Create the repository in a guest: the base with its history, on a branch of its own.

The host builds the repository in a private directory and passes it as one tar file. So a guest, which may be emulated,
only unpacks it and checks out the files. The host writes the tar file into the session's shared directory. It replaces
whatever the guest has there by that name, and follows no symlink.
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
from hiveyard.repository.git import TRUSTED, complaint, config, git, git_output
from hiveyard.repository.submodules import BASE, Submodule, bare_copy, submodules
from hiveyard.repository.taking import identity

ROOT = "/session"
TAR, BUNDLE, SHALLOW = "origin.tar", "origin.bundle", "origin.shallow"
_TIMEOUT = 3600.0


class Part(NamedTuple):
    """A file or directory of the host, and its place in the guest's work tree."""

    place: str
    source: Path


async def push(guest: Guest, origin: Path, shared: Path, *, base: str, branch: str, report: Report = quiet) -> None:
    """Create `/session/repo` in the guest, on `branch` at `base`, with its history and tags.

    Safe to repeat: an existing repository does not change. `shared` is the host's side of `/session`. Raises
    RepositoryError, GuestNoSpace, and the guest's errors."""
    if not os.path.lexists(shared / "repo"):
        with tempfile.TemporaryDirectory(dir=origin.parent, prefix=".push-") as scratch:
            async with measured(report, "packing the repository", partial(disk_usage, Path(scratch))):
                parts = await _parts(origin, Path(scratch), base, branch)
            async with measured(report, "giving the repository to the machine", partial(disk_usage, shared / TAR)):
                await anyio.to_thread.run_sync(_write_tar, parts, shared, TAR)
    paths = [submodule.path for submodule in submodules(origin)]
    command = Command(argv=("bash", "-c", scripts.PUSH, "hv", ROOT, *paths), cwd="/")
    async with measured(report, "checking out files in the machine", partial(disk_usage, shared / "repo")):
        result = await guest.run(command, timeout=_TIMEOUT, limit=1 << 20)
    if not result.ok:
        error = decode(result.stderr)
        if "No space left on device" in error:
            raise GuestNoSpace(f"the repository does not fit into the machine: {one_line(error)}")
        raise RepositoryError(f"the repository could not be set up in the machine: {one_line(error[-600:])}")


async def _parts(origin: Path, scratch: Path, base: str, branch: str) -> list[Part]:
    """Return the guest's `.git`, then for each submodule its repository and the `.git` file that points to it."""
    inner = submodules(origin)
    configuration = await _configuration(origin, _modules(inner, ""))
    parts = [Part(".git", await _repository(origin, scratch / "top", base, branch, configuration))]
    for submodule in inner:
        copy, directory = bare_copy(origin, submodule), scratch / submodule.copy
        module = Path(".git", submodule.module)
        tree = os.path.relpath(submodule.path, module)
        configuration = await _configuration(copy, _modules(inner, submodule.path), tree)
        parts.append(Part(str(module), await _repository(copy, directory, submodule.commit, None, configuration)))
        link = directory / "link"
        link.write_text(f"gitdir: {os.path.relpath(module, submodule.path)}\n", encoding="utf-8")
        parts.append(Part(f"{submodule.path}/.git", link))
    return parts


async def _repository(origin: Path, scratch: Path, base: str, branch: str | None, configuration: str) -> Path:
    """Build a `.git` for the guest, without an index, on `branch` at `base`; None means a detached HEAD."""
    built = scratch / "repo" / ".git"
    scratch.mkdir()
    kind = await object_format(origin)
    # A guest's git may be older than the host's, so references are stored as files, which every git can read.
    words = ("init", "--quiet", "--template=", f"--object-format={kind}", f"--initial-branch={branch or 'main'}")
    await git_output(*words, str(built.parent), at=scratch, env={"GIT_DEFAULT_REF_FORMAT": "files"})
    bundle, *shallow = await bundle_base(origin, scratch)
    for file in shallow:
        file.rename(built / "shallow")
    refs = (f"{BASE}:{BASE}", "refs/tags/*:refs/tags/*")
    fetch = ("-c", "fetch.unpackLimit=1", "fetch", "--quiet", "--no-write-fetch-head", str(bundle), *refs)
    await git_output(*fetch, at=built.parent, env=TRUSTED)
    bundle.unlink()
    move = f"create refs/heads/{branch} {base}" if branch else f"option no-deref\nupdate HEAD {base}"
    moves = [f"verify {BASE} {base}", move]
    if ref := await config(origin, "hiveyard.baseref"):
        moves.append(f"create refs/remotes/origin/{ref} {base}")
    await git_output("update-ref", "--stdin", at=built.parent, stdin="\n".join([*moves, ""]).encode())
    await git_output("pack-refs", "--all", at=built.parent)
    (built / "config").write_text(configuration, encoding="utf-8")
    return built


async def _configuration(origin: Path, active: Sequence[str], tree: str = "") -> str:
    """Return the configuration for a Linux guest, independent of the host's file system. `active` has the names of
    submodules; `tree` is the path of the work tree if it is not the parent directory."""
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
    return [submodule.name for submodule in inner if submodule.outer == outer]


def _quoted(value: str) -> str:
    plain = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}"'


async def bundle_base(origin: Path, into: Path) -> list[Path]:
    """Write the base with its history and tags as a bundle, and for a shallow history the file `shallow`, too."""
    bundle, shallow = into / BUNDLE, into / SHALLOW
    tags = await git_output("for-each-ref", "--format=%(refname)", f"--merged={BASE}", "refs/tags", at=origin)
    refs = "\n".join([BASE, *tags.splitlines(), ""]).encode("utf-8", "surrogateescape")
    done = await git("bundle", "create", "--quiet", str(bundle), "--stdin", at=origin, stdin=refs)
    if not done.ok:
        raise RepositoryError(f"the repository's history is not complete: {complaint(done)}")
    if (origin / "shallow").exists():
        shutil.copyfile(origin / "shallow", shallow)
        return [bundle, shallow]
    return [bundle]


async def object_format(origin: Path) -> str:
    """Return `sha1` or `sha256`."""
    return await git_output("rev-parse", "--show-object-format", at=origin)


def _write_tar(parts: Sequence[Part], directory: Path, name: str) -> None:
    """Write a tar of `parts` into a directory that a guest can write, and replace what the guest has there by that
    name. Raises RepositoryError for a directory."""
    at = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            os.unlink(name, dir_fd=at)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            raise RepositoryError(f"the machine created a directory named {name} in /session") from None
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
