"""The user's own git program, run so that a repository's configuration and hooks run nothing.

Used for repositories of the user and for bare ones that belong to Hiveyard, never inside a directory that a guest can
write. It knows no session and no guest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import BinaryIO

import anyio

from hiveyard.core.errors import RepositoryError
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.process import Completed, run, running
from hiveyard.kit.text import one_line

INERT = (
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.untrackedCache=false"),
    *("-c", "core.splitIndex=false"),
    *("-c", "core.alternateRefsCommand=true"),
    *("-c", "submodule.recurse=false"),
    *("-c", "fetch.recurseSubmodules=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "commit.gpgSign=false"),
    *("-c", "advice.detachedHead=false"),
    *("-c", "advice.addEmbeddedRepo=false"),
    # No flags of `git diff` stand for these where it lists and does not show.
    *("-c", "diff.context=3"),
    *("-c", "diff.interHunkContext=0"),
    *("-c", "diff.suppressBlankEmpty=false"),
    # A person may want git to find no bare repository by itself. Ours are bare, and each is named.
    *("-c", "safe.bareRepository=all"),
)
"""What keeps configuration from running programs, touching more than git is asked to, or changing its answers."""

# The rest of GIT_* would point git at another repository than the one named.
_PASSED = ("GIT_SSH", "GIT_ASKPASS", "GIT_SSL_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
_FORCED = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    # No transport at all: a repository's own configuration can name a remote, and the program that serves it, from
    # which git would fetch what is missing, whatever it was asked for.
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
GIVEN: Mapping[str, str | None] = {"GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
"""Environment for an address that the user gave, or that is ours."""

STRANGER: Mapping[str, str | None] = {"GIT_ALLOW_PROTOCOL": None, "GIT_PROTOCOL_FROM_USER": "0"}
"""Environment for an address that the user did not give: git then takes what the user's configuration allows for such
ones, by default no path of this host and no helper program."""

INERT_SOURCE = "--upload-pack=GIT_ALLOW_PROTOCOL=none git-upload-pack"
"""For fetching from a repository on this host: the program at its end fetches nothing either."""

_TIMEOUT = 600.0
_PERCENT = re.compile(r"^(?:remote: )?([A-Z][a-z]+ objects): +(\d+)%")


async def git(
    *words: str,
    at: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: bytes = b"",
    timeout: float = _TIMEOUT,
    limit: int = 64 << 20,
    prefix: Sequence[str] = (),
) -> Completed:
    """Run git in the repository `at` to its end; a failure is an answer. `env` is added to git's environment (None
    takes a variable out of it), `prefix` is a command that runs its arguments.

    Raises RepositoryError when there is no git program, or when it takes longer than `timeout` seconds."""
    try:
        argv = [*prefix, *_argv(words, at)]
        return await run(argv, stdin=stdin, env=_environment(env), timeout=timeout, limit=limit, cwd="/")
    except FileNotFoundError:
        raise _no_git() from None
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s", where=str(at or "")) from None


async def answer(*words: str, at: Path, env: Mapping[str, str | None] | None = None, stdin: bytes = b"") -> str:
    """What git prints, stripped. Raises RepositoryError with git's own complaint when it fails."""
    done = await git(*words, at=at, env=env, stdin=stdin)
    if not done.ok:
        raise RepositoryError(f"git {words[0]} failed in {at}: {complaint(done)}")
    return done.stdout.decode("utf-8", "surrogateescape").strip()


async def config(at: Path, name: str) -> str:
    """A value of the configuration that holds in `at`; empty when there is none."""
    done = await git("config", "--get", name, at=at)
    return done.stdout.decode("utf-8", "replace").strip() if done.ok else ""


async def git_to_file(*asked: Sequence[str], file: Path, limit: int, prefix: Sequence[str] = ()) -> None:
    """Write what git prints, run with each of `asked`, into a file of at most `limit` bytes. Raises RepositoryError;
    the file is gone then. `prefix` as in `git`."""
    try:
        with file.open("wb") as out:
            for words in asked:
                await _print_to(out, words, limit, prefix)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


async def _print_to(out: BinaryIO, words: Sequence[str], limit: int, prefix: Sequence[str]) -> None:
    async with running([*prefix, *_argv(words, None)], env=_environment(None), cwd="/", grace=0) as process:
        assert process.stdout is not None
        async for piece in process.stdout:
            if out.tell() + len(piece) > limit:
                raise RepositoryError(f"git gives more than {limit >> 20} MiB")
            out.write(piece)
        status = await process.wait()
    if status != 0:
        raise RepositoryError(f"git {' '.join(words[:3])} failed with exit code {status}")


async def git_from_file(
    *words: str, at: Path, file: Path, offset: int, timeout: float, prefix: Sequence[str] = ()
) -> Completed:
    """Run git with a file's bytes from `offset` on as its stdin. Raises RepositoryError after `timeout` seconds.
    `prefix` as in `git`."""
    said = bytearray()
    try:
        with file.open("rb", buffering=0) as source, anyio.fail_after(timeout):
            source.seek(offset)
            argv, env = [*prefix, *_argv(words, at)], _environment(None)
            async with running(argv, stdin=source, stdout=DEVNULL, env=env, cwd="/", grace=0) as process:
                assert process.stderr is not None
                async for piece in process.stderr:
                    said = (said + piece)[-(64 << 10) :]
                status = await process.wait()
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s", where=str(at)) from None
    return Completed(("git", *words), status, b"", bytes(said))


async def git_with_progress(*words: str, report: Report = quiet, timeout: float = 3600.0) -> Completed:
    """Run a git verb that fetches and tells its progress on stderr; `report` gets a line at each quarter of a step."""
    said = bytearray()
    try:
        with anyio.fail_after(timeout):
            argv, env = _argv(words, None), _environment(GIVEN)
            async with running(argv, stdout=DEVNULL, stderr=PIPE, env=env, cwd="/", grace=0) as process:
                assert process.stderr is not None
                told: set[str] = set()
                async for piece in process.stderr:
                    said = (said + piece)[-(64 << 10) :]
                    _tell(piece, told, report)
                status = await process.wait()
    except FileNotFoundError:
        raise _no_git() from None
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s") from None
    return Completed(("git", *words), status, b"", bytes(said))


def complaint(done: Completed) -> str:
    """The line of git's stderr that says what is wrong."""
    lines = [line for line in re.split(r"[\r\n]+", done.error_output()) if line.strip()]
    wrong = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return one_line((wrong or lines or [f"exit code {done.status}"])[0])


def _tell(piece: bytes, told: set[str], report: Report) -> None:
    for line in re.split(r"[\r\n]+", piece.decode("utf-8", "replace")):
        if match := _PERCENT.match(line):
            text = f"{match[1].lower()}: {int(match[2]) // 25 * 25}%"
            if text not in told:
                told.add(text)
                report(text)


def _argv(words: Sequence[str], at: Path | None) -> list[str]:
    return ["git", *INERT, *(("-C", str(at)) if at is not None else ()), *words]


def _environment(extra: Mapping[str, str | None] | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(_PASSED)}
    whole = {**kept, **_FORCED, **(extra or {})}
    return {name: value for name, value in whole.items() if value is not None}


def _no_git() -> RepositoryError:
    return RepositoryError("there is no git program on this host", hint="apt-get install git")
