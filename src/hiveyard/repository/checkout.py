"""Create a session's repository on the host: the base with its history and its work tree, on a branch of its own.

It is made in a directory that no guest has seen, which then becomes the session's. So a guest, which may be emulated,
finds all files and a valid index. Neither the repository's configuration nor the user's has a say: no filter, hook or
other program runs, and files are as a guest without configuration would check them out.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from hiveyard.core.errors import NoSpace, RepositoryError
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.repository.git import TRUSTED, complaint, config, git, git_output
from hiveyard.repository.index import VERSION_2, settle
from hiveyard.repository.submodules import BASE, Submodule, bare_copy, submodules
from hiveyard.repository.taking import identity

ROOT = "/session"
BUNDLE, SHALLOW = "origin.bundle", "origin.shallow"
_WORKERS = ("-c", "checkout.workers=0")
"""Options for a git that writes files with all processors."""
_UNCONFIGURED = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


class Part(NamedTuple):
    """A file or directory, and its place in the work tree."""

    place: str
    source: Path


async def checkout(origin: Path, tree: Path, *, base: str, branch: str, report: Report = quiet) -> None:
    """Create `repo` in the directory `tree`, on `branch` at `base`, with its history and tags.

    Safe to repeat: an existing repository does not change. No guest may be using the directory. Raises RepositoryError,
    NoSpace."""
    if os.path.lexists(tree / "repo"):
        return
    with tempfile.TemporaryDirectory(dir=origin.parent, prefix=".push-") as scratch, _disk_full_as_no_space():
        async with measured(report, "copying the history", partial(disk_usage, Path(scratch))):
            work = await _repositories(origin, Path(scratch), base, branch)
        async with measured(report, "checking out files", partial(disk_usage, work)):
            places = {".": ".git"} | {inner.path: f".git/{inner.module}" for inner in submodules(origin)}
            for path, repository in places.items():
                await git_output(*_WORKERS, *VERSION_2, "reset", "--quiet", "--hard", at=work / path, env=_UNCONFIGURED)
                settled = partial(settle, work / repository / "index", work / path, await object_format(origin))
                await anyio.to_thread.run_sync(settled)
        work.rename(tree / "repo")


@contextmanager
def _disk_full_as_no_space() -> Iterator[None]:
    try:
        yield
    except (OSError, RepositoryError) as error:
        full = "No space left on device" in str(error)
        if not full and not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise NoSpace(f"the repository does not fit on the disk: {error}", hint="df -h") from error


async def _repositories(origin: Path, scratch: Path, base: str, branch: str) -> Path:
    """Create the work tree's directory with its `.git`, and in it the repositories of the submodules."""
    work = scratch / "work"
    for place, source in await _parts(origin, scratch, base, branch):
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        source.rename(work / place)
    return work


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
    # Inodes and owners are others in the guest. Without them the index is valid there: git need not read all files.
    lines += ["\tcheckStat = minimal", "\ttrustctime = false"]
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
    # Deltas that exist are used. No new ones are searched for, which takes longer than it saves.
    words = ("-c", "pack.window=0", "bundle", "create", "--quiet", str(bundle), "--stdin")
    done = await git(*words, at=origin, stdin=refs)
    if not done.ok:
        raise RepositoryError(f"the repository's history is not complete: {complaint(done)}")
    if (origin / "shallow").exists():
        shutil.copyfile(origin / "shallow", shallow)
        return [bundle, shallow]
    return [bundle]


async def object_format(origin: Path) -> str:
    """Return `sha1` or `sha256`."""
    return await git_output("rev-parse", "--show-object-format", at=origin)
