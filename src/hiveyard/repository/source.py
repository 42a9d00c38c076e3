"""Find the source repository: a directory on this host, or an address that git can clone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hiveyard.core.errors import (
    BadInput,
    BranchExists,
    EmptyRepository,
    NoRepository,
    RepositoryError,
    UnknownRevision,
)
from hiveyard.kit.text import one_line
from hiveyard.repository.branches import collide, heads
from hiveyard.repository.git import TRUSTED, complaint, git

_SCHEMES = ("https", "http", "ssh", "git")
_SCP = re.compile(r"[A-Za-z0-9_.][\w.-]*@[A-Za-z0-9][\w.-]*:(?!/?-)[^\s]+\Z")
_GITHUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_.][\w.-]{0,99}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_ASK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySource:
    """A source repository: `path` (a directory of this host) or `url`, never both. `text` is what the user typed."""

    text: str
    path: Path | None = None
    url: str | None = None

    def __str__(self) -> str:
        return str(self.path or self.url)


def parse_source(text: str, here: Path | None = None) -> RepositorySource:
    """Return the source that `text` names: a path (relative to `here`, `~`, `file://`), a URL, `user@host:path`, or
    `owner/repo` on GitHub if there is no such path. Only for this last check the file system is read.

    Raises BadInput for an address that is not safe to pass to git."""
    if not text.strip() or "\0" in text:
        raise BadInput("the repository is empty: give a path, a URL or owner/repo", hint="hv run . -m TEXT")
    if "://" in text:
        return _from_url(text)
    if _SCP.match(text):
        return RepositorySource(text=text, url=text)
    if "::" in text:
        raise BadInput(f"{one_line(text, 80)} is not an address to clone from: remote helpers are not supported")
    path = Path(text).expanduser() if text.startswith("~") else Path(text)
    path = path if path.is_absolute() else (here or Path.cwd()) / path
    if _GITHUB.match(text) and not path.exists():
        name = text.removesuffix(".git")
        return RepositorySource(text=text, url=f"https://github.com/{name}.git")
    return RepositorySource(text=text, path=path)


def _from_url(text: str) -> RepositorySource:
    parts = urlsplit(text)
    if parts.scheme == "file":
        return RepositorySource(text=text, path=Path(unquote(parts.path)))
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.hostname.startswith("-"):
        raise BadInput(
            f"{one_line(text, 80)} is not an address to clone from: it must start with https, ssh, git or file"
        )
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        # The request is stored and shown, and so would be a key in it.
        raise BadInput(
            f"the address of {parts.hostname} contains a key, which would be stored and shown with the task",
            hint="remove it and use git's credential helper: git config --global credential.helper store",
        )
    return RepositorySource(text=text, url=text)


async def check(source: RepositorySource, *, base: str | None = None, branch: str | None = None) -> None:
    """Check before work begins that the repository exists and has the base, and that the branch is free.

    Raises NoRepository, EmptyRepository, UnknownRevision, BranchExists, BadInput."""
    if branch is not None:
        await check_branch_name(branch)
    if source.path is not None:
        top = await open_local(source.path)
        await resolve_local(top, base)
        if branch is not None:
            await check_free(top, branch)
    else:
        await _check_remote(source, base, branch)


async def open_local(path: Path) -> Path:
    """Return the directory of the repository that contains `path`: the top of its work tree, or the bare repository.

    Raises NoRepository, RepositoryError."""
    try:
        if not path.exists():
            raise NoRepository(f"{path} does not exist", hint="hv run PATH-OF-A-REPOSITORY -m TEXT")
    except OSError as error:  # the name is too long, or a directory may not be read
        raise NoRepository(f"{one_line(str(path))} cannot be used: {error.strerror}") from error
    if not path.is_dir():
        raise NoRepository(f"{path} is a file, not a git repository")
    done = await git("rev-parse", "--is-bare-repository", "--is-inside-git-dir", "--absolute-git-dir", at=path)
    if not done.ok:
        raise _unusable(path, complaint(done))
    bare, inside, own = done.stdout.decode("utf-8", "surrogateescape").split("\n")[:3]
    if bare == "true" or inside == "true":
        return Path(own)
    shown = await git("rev-parse", "--show-toplevel", at=path)
    if not shown.ok:
        raise _unusable(path, complaint(shown))
    return Path(shown.stdout.decode("utf-8", "surrogateescape").removesuffix("\n"))


def _unusable(path: Path, why: str) -> RepositoryError:
    if "dubious ownership" in why:
        hint = f"git config --global --add safe.directory {path}"
        return RepositoryError(f"{path} belongs to another user and git refuses to work in it", hint=hint)
    if "not a git repository" in why:
        return NoRepository(f"{path} is not a git repository", hint=f"git -C {path} init")
    return NoRepository(f"{path} cannot be used as a git repository: {why}")


async def resolve_local(top: Path, base: str | None) -> str:
    """Return the commit that `base` (None: HEAD) names in a repository. Raises UnknownRevision, EmptyRepository."""
    revision = base or "HEAD"
    done = None
    if not revision.startswith("-"):
        done = await git("rev-parse", "--verify", "--quiet", revision + "^{commit}", at=top)
    found = done.stdout.decode("ascii", "replace").strip() if done is not None and done.ok else ""
    if _SHA.match(found):
        return found
    if not (await git("rev-list", "-n", "1", "--all", at=top)).stdout.strip():
        raise EmptyRepository(f"{top} has no commit yet", hint=f"git -C {top} commit --allow-empty -m 'First commit'")
    if base is None:
        raise UnknownRevision(f"the current branch of {top} has no commit yet", hint="--base BRANCH")
    raise UnknownRevision(f"{top} has no commit named {one_line(base, 80)}", hint=f"git -C {top} branch --all")


async def check_branch_name(branch: str) -> None:
    """Raise BadInput for a name that git does not accept as a branch."""
    done = None if branch.startswith("-") else await git("check-ref-format", f"refs/heads/{branch}")
    if done is None or not done.ok or branch == "HEAD":
        raise BadInput(f"{one_line(branch, 80)!r} is not a valid branch name")


async def check_free(top: Path, branch: str) -> None:
    """Raise BranchExists if a repository has a branch of that name, or one that git cannot keep beside it."""
    _refuse_taken(str(top), branch, await heads(top))


def _refuse_taken(where: str, branch: str, taken: list[str]) -> None:
    for name in taken:
        if name == branch:
            raise BranchExists(f"{where} already has a branch {branch}", hint="choose another one with --branch")
        if collide(name, branch):
            message = f"{where} has a branch {one_line(name, 80)}: git cannot keep {branch} beside it"
            raise BranchExists(message, hint="choose another one with --branch")


async def _check_remote(source: RepositorySource, base: str | None, branch: str | None) -> None:
    assert source.url is not None
    try:
        done = await git("ls-remote", "--", source.url, env=TRUSTED, timeout=_ASK_TIMEOUT)
    except RepositoryError as error:
        raise unreachable(source.url, error.message) from error
    if not done.ok:
        raise unreachable(source.url, complaint(done))
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    names = [line.partition("\t")[2] for line in lines]
    if not names:
        raise EmptyRepository(f"{source.url} has no commit yet")
    # A commit id or an expression can only be checked after cloning.
    plain = base is not None and re.fullmatch(r"[\w./-]*[g-zG-Z_./-][\w./-]*", base) is not None
    if plain and not any(name == base or name.endswith(f"/{base}") for name in names):
        raise UnknownRevision(f"{source.url} has no branch or tag {base}", hint=f"git ls-remote {source.url}")
    if branch is not None:
        taken = [name.removeprefix("refs/heads/") for name in names if name.startswith("refs/heads/")]
        _refuse_taken(source.url, branch, taken)


def unreachable(url: str, why: str) -> RepositoryError:
    """Return the error for an address that git could not clone from."""
    if re.search(r"not found|does not exist|not appear to be a git repository|Repository not found", why, re.I):
        return NoRepository(f"{url} is not a repository: {why}")
    return NoRepository(f"git cannot read {url}: {why}", hint=f"git ls-remote {url}")
