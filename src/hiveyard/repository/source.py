"""Where a repository is: a directory on this host or an address that git can clone."""

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
from hiveyard.repository.git import GIVEN, complaint, git

_SCHEMES = ("https", "http", "ssh", "git")
_SCP = re.compile(r"[A-Za-z0-9_.][\w.-]*@[A-Za-z0-9][\w.-]*:(?!/?-)[^\s]+\Z")
_GITHUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_.][\w.-]{0,99}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_ASK_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySource:
    """A repository to take work from: `path` (a directory of this host) or `url`, never both. `text` is as written."""

    text: str
    path: Path | None = None
    url: str | None = None

    def __str__(self) -> str:
        return str(self.path or self.url)


def parse_source(text: str, here: Path | None = None) -> RepositorySource:
    """What a person means by `text`: a path (relative to `here`, `~`, `file://`), a URL, `user@host:path`, or
    `owner/repo` on GitHub when there is no such path. Looks at the file system only to tell the last two apart.

    Raises BadInput for an address that git could not be given safely."""
    if not text.strip() or "\0" in text:
        raise BadInput("a repository is a path, a URL or owner/repo, not an empty text", hint="hv run . -m TEXT")
    if "://" in text:
        return _from_url(text)
    if _SCP.match(text):
        return RepositorySource(text=text, url=text)
    if "::" in text:
        raise BadInput(f"{one_line(text, 80)} is no address to clone from: remote helpers are not used")
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
        raise BadInput(f"{one_line(text, 80)} is no address to clone from: it starts with https, ssh, git or file")
    if parts.password or (parts.username and parts.scheme in ("http", "https")):
        # The request is kept in the journal and shown; a key in it would be too.
        raise BadInput(
            f"the address of {parts.hostname} carries a key, which would be kept and shown with the task",
            hint="leave it out and let git's credential helper give it: git config --global credential.helper store",
        )
    return RepositorySource(text=text, url=text)


async def check(source: RepositorySource, *, base: str | None = None, branch: str | None = None) -> None:
    """Everything that can be told before work begins: the repository exists and has the base, the branch is free.

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
    """The directory of the repository that holds `path`: its work tree's top, or its own when it is bare.

    Raises NoRepository, RepositoryError."""
    try:
        if not path.exists():
            raise NoRepository(f"there is no {path}", hint="hv run PATH-OF-A-REPOSITORY -m TEXT")
    except OSError as error:  # the name is longer than any, or the way there is closed
        raise NoRepository(f"{one_line(str(path))} cannot be used: {error.strerror}") from error
    if not path.is_dir():
        raise NoRepository(f"{path} is a file and not a git repository")
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
    """The commit that `base` (None: what is checked out) means in a repository. Raises UnknownRevision,
    EmptyRepository."""
    wanted = base or "HEAD"
    done = None
    if not wanted.startswith("-"):
        done = await git("rev-parse", "--verify", "--quiet", wanted + "^{commit}", at=top)
    found = done.stdout.decode("ascii", "replace").strip() if done is not None and done.ok else ""
    if _SHA.match(found):
        return found
    if not (await git("rev-list", "-n", "1", "--all", at=top)).stdout.strip():
        raise EmptyRepository(f"{top} has no commit yet", hint=f"git -C {top} commit --allow-empty -m 'First commit'")
    if base is None:
        raise UnknownRevision(f"the branch that is checked out in {top} has no commit yet", hint="--base BRANCH")
    raise UnknownRevision(f"{top} has no commit called {one_line(base, 80)}", hint=f"git -C {top} branch --all")


async def check_branch_name(branch: str) -> None:
    """Raises BadInput for a name that git does not take for a branch."""
    done = None if branch.startswith("-") else await git("check-ref-format", f"refs/heads/{branch}")
    if done is None or not done.ok or branch == "HEAD":
        raise BadInput(f"{one_line(branch, 80)!r} is no name for a branch")


async def check_free(top: Path, branch: str) -> None:
    """Raises BranchExists when a repository has a branch of that name, or one that git cannot keep beside it."""
    _refuse_taken(str(top), branch, await heads(top))


def _refuse_taken(where: str, branch: str, taken: list[str]) -> None:
    for name in taken:
        if name == branch:
            raise BranchExists(f"{where} has a branch {branch} already", hint="choose another one with --branch")
        if collide(name, branch):
            told = f"{where} has a branch {one_line(name, 80)}: git cannot keep {branch} beside it"
            raise BranchExists(told, hint="choose another one with --branch")


async def _check_remote(source: RepositorySource, base: str | None, branch: str | None) -> None:
    assert source.url is not None
    try:
        done = await git("ls-remote", "--", source.url, env=GIVEN, timeout=_ASK_TIMEOUT)
    except RepositoryError as error:
        raise unreachable(source.url, error.message) from error
    if not done.ok:
        raise unreachable(source.url, complaint(done))
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    names = [line.partition("\t")[2] for line in lines]
    if not names:
        raise EmptyRepository(f"{source.url} has no commit yet")
    # What looks like a commit's id or an expression can only be told after cloning.
    plain = base is not None and re.fullmatch(r"[\w./-]*[g-zG-Z_./-][\w./-]*", base) is not None
    if plain and not any(name == base or name.endswith(f"/{base}") for name in names):
        raise UnknownRevision(f"{source.url} has no branch or tag {base}", hint=f"git ls-remote {source.url}")
    if branch is not None:
        taken = [name.removeprefix("refs/heads/") for name in names if name.startswith("refs/heads/")]
        _refuse_taken(source.url, branch, taken)


def unreachable(url: str, why: str) -> RepositoryError:
    """The error for an address that git could not clone from."""
    if re.search(r"not found|does not exist|not appear to be a git repository|Repository not found", why, re.I):
        return NoRepository(f"there is no repository at {url}: {why}")
    return NoRepository(f"git cannot read {url}: {why}", hint=f"git ls-remote {url}")
