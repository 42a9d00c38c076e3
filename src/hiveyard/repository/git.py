"""Run the host's git so that a repository's configuration and hooks run no program.

It is used for the user's repositories and for Hiveyard's own bare ones, never inside a directory that a guest can
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
    # `git diff` has no options for these in its list formats.
    *("-c", "diff.context=3"),
    *("-c", "diff.interHunkContext=0"),
    *("-c", "diff.suppressBlankEmpty=false"),
    # The user may have forbidden bare repositories. Hiveyard's are bare, and each is named by its path.
    *("-c", "safe.bareRepository=all"),
)
"""Options that keep configuration from running programs, changing other files, or changing the output."""

# Other variables GIT_* could point git to another repository.
_PASSED = ("GIT_SSH", "GIT_ASKPASS", "GIT_SSL_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
_FORCED = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
    # No transport at all: a repository's configuration can name a remote and a program that serves it, and any git
    # command would fetch missing objects from there.
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "LC_ALL": "C",
}
TRUSTED: Mapping[str, str | None] = {"GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
"""Environment for an address that comes from the user or from Hiveyard."""

UNTRUSTED: Mapping[str, str | None] = {"GIT_ALLOW_PROTOCOL": None, "GIT_PROTOCOL_FROM_USER": "0"}
"""Environment for an address that comes from elsewhere: git uses the transports that the user's configuration allows
for such addresses, by default no path of this host and no helper program."""

INERT_SOURCE = "--upload-pack=GIT_ALLOW_PROTOCOL=none git-upload-pack"
"""Option for fetching from a repository on this host: the git that serves it fetches nothing itself."""

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
    """Run git in the repository `at` and wait for it; a failure is returned, not raised. `env` is added to git's
    environment (None removes a variable); `prefix` is a command that runs its arguments.

    Raises RepositoryError if there is no git program, or if git takes longer than `timeout` seconds."""
    try:
        argv = [*prefix, *_argv(words, at)]
        return await run(argv, stdin=stdin, env=_environment(env), timeout=timeout, limit=limit, cwd="/")
    except FileNotFoundError:
        raise _no_git() from None
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s", where=str(at or "")) from None


async def git_output(*words: str, at: Path, env: Mapping[str, str | None] | None = None, stdin: bytes = b"") -> str:
    """Return git's output, stripped. Raises RepositoryError with git's message if it fails."""
    done = await git(*words, at=at, env=env, stdin=stdin)
    if not done.ok:
        raise RepositoryError(f"git {words[0]} failed in {at}: {complaint(done)}")
    return done.stdout.decode("utf-8", "surrogateescape").strip()


async def config(at: Path, name: str) -> str:
    """Return a configuration value as it is in `at`; empty if it is not set."""
    done = await git("config", "--get", name, at=at)
    return done.stdout.decode("utf-8", "replace").strip() if done.ok else ""


async def git_to_file(*commands: Sequence[str], file: Path, limit: int, prefix: Sequence[str] = ()) -> None:
    """Run git with each of `commands` and write all output to a file of at most `limit` bytes. Raises RepositoryError;
    then the file is removed. `prefix` is as in `git`."""
    try:
        with file.open("wb") as out:
            for words in commands:
                await _print_to(out, words, limit, prefix)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


async def _print_to(out: BinaryIO, words: Sequence[str], limit: int, prefix: Sequence[str]) -> None:
    async with running([*prefix, *_argv(words, None)], env=_environment(None), cwd="/", grace=0) as process:
        assert process.stdout is not None
        async for piece in process.stdout:
            if out.tell() + len(piece) > limit:
                raise RepositoryError(f"git's output is larger than {limit >> 20} MiB")
            out.write(piece)
        status = await process.wait()
    if status != 0:
        raise RepositoryError(f"git {' '.join(words[:3])} failed with exit code {status}")


async def git_from_file(
    *words: str, at: Path, file: Path, offset: int, timeout: float, prefix: Sequence[str] = ()
) -> Completed:
    """Run git with a file's content from `offset` as its stdin. Raises RepositoryError after `timeout` seconds.
    `prefix` is as in `git`."""
    errors = bytearray()
    try:
        with file.open("rb", buffering=0) as source, anyio.fail_after(timeout):
            source.seek(offset)
            argv, env = [*prefix, *_argv(words, at)], _environment(None)
            async with running(argv, stdin=source, stdout=DEVNULL, env=env, cwd="/", grace=0) as process:
                assert process.stderr is not None
                async for piece in process.stderr:
                    errors = (errors + piece)[-(64 << 10) :]
                status = await process.wait()
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s", where=str(at)) from None
    return Completed(("git", *words), status, b"", bytes(errors))


async def git_with_progress(*words: str, report: Report = quiet, timeout: float = 3600.0) -> Completed:
    """Run a git command that fetches and reports its progress on stderr; `report` gets a line at each quarter of a
    step."""
    errors = bytearray()
    try:
        with anyio.fail_after(timeout):
            argv, env = _argv(words, None), _environment(TRUSTED)
            async with running(argv, stdout=DEVNULL, stderr=PIPE, env=env, cwd="/", grace=0) as process:
                assert process.stderr is not None
                reported: set[str] = set()
                async for piece in process.stderr:
                    errors = (errors + piece)[-(64 << 10) :]
                    _report_progress(piece, reported, report)
                status = await process.wait()
    except FileNotFoundError:
        raise _no_git() from None
    except TimeoutError:
        raise RepositoryError(f"git {words[0]} did not end within {timeout:.0f}s") from None
    return Completed(("git", *words), status, b"", bytes(errors))


def complaint(done: Completed) -> str:
    """Return the line of git's stderr that names the problem."""
    lines = [line for line in re.split(r"[\r\n]+", done.error_output()) if line.strip()]
    wrong = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))]
    return one_line((wrong or lines or [f"exit code {done.status}"])[0])


def _report_progress(piece: bytes, reported: set[str], report: Report) -> None:
    for line in re.split(r"[\r\n]+", piece.decode("utf-8", "replace")):
        if match := _PERCENT.match(line):
            text = f"{match[1].lower()}: {int(match[2]) // 25 * 25}%"
            if text not in reported:
                reported.add(text)
                report(text)


def _argv(words: Sequence[str], at: Path | None) -> list[str]:
    return ["git", *INERT, *(("-C", str(at)) if at is not None else ()), *words]


def _environment(extra: Mapping[str, str | None] | None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k.startswith(_PASSED)}
    merged = {**kept, **_FORCED, **(extra or {})}
    return {name: value for name, value in merged.items() if value is not None}


def _no_git() -> RepositoryError:
    return RepositoryError("there is no git program on this host", hint="apt-get install git")
