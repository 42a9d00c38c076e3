"""The only way to run other programs: argv lists, own process group, limited output, an end for every child."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, NamedTuple

import anyio
import anyio.abc
from anyio.abc import Process

from hiveyard.kit.text import one_line

log = logging.getLogger("hiveyard.process")
"""Each command that is started, at level DEBUG."""
_WORD, _SCRIPT, _COMMAND = 160, 60, 2000
"""The numbers of characters that are logged of a word, a script and a command."""
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET_NAME = re.compile(r"(?i)\A(--?)?[a-z0-9_-]*(key|token|secret|passw|auth|credential)[a-z0-9_-]*=")


class Completed(NamedTuple):
    """The result of a program. `status` is its exit code, or minus the number of the signal that killed it."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.status == 0

    def error_output(self, limit: int = 2000) -> str:
        """Return the end of stderr (or of stdout if stderr is empty), for an error message."""
        output = self.stderr.strip() or self.stdout.strip()
        return output[-limit:].decode("utf-8", "replace")

    def command(self) -> str:
        """Return the command in a form that can be pasted into a shell."""
        return shlex.join(self.argv)


def find(program: str) -> str | None:
    """Return the path of a program, or None if it is not installed.

    Also searches the directories of administration tools, which Debian leaves out of a user's PATH."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(program, path=os.pathsep.join((path, "/usr/local/sbin", "/usr/sbin", "/sbin")))


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    limit: int = 64 << 20,
) -> Completed:
    """Run a program and wait until it ends. A failing program is a result, not an error.

    `env` replaces the environment if given. At most `limit` bytes of each output are kept; the rest is read and
    dropped. If the call is cancelled, or after `timeout` seconds (TimeoutError), the program and its process group are
    killed. Raises FileNotFoundError or PermissionError if the program cannot be started."""
    out, err = bytearray(), bytearray()
    async with running(argv, stdin=subprocess.PIPE, cwd=cwd, env=env, grace=0.0) as process:
        with anyio.fail_after(timeout):
            async with anyio.create_task_group() as group:
                group.start_soon(_feed, process, stdin)
                group.start_soon(_drain, process.stdout, out, limit)
                group.start_soon(_drain, process.stderr, err, limit)
            status = await process.wait()
    return Completed(tuple(argv), status, bytes(out), bytes(err))


@asynccontextmanager
async def running(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    grace: float = 5.0,
) -> AsyncIterator[Process]:
    """Run a program with its process group while the block runs, and never longer."""
    process = await anyio.open_process(
        list(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    if log.isEnabledFor(logging.DEBUG):
        log.debug("pid %d: %s", process.pid, readable(argv))
    try:
        yield process
    finally:
        # Shielded: if we are cancelled, the child still gets its grace period before the kill.
        with anyio.CancelScope(shield=True):
            if process.returncode is None and grace > 0:
                signal_group(process.pid, signal.SIGTERM)
                with anyio.move_on_after(grace):
                    await process.wait()
            signal_group(process.pid, signal.SIGKILL)
            with anyio.move_on_after(5):
                await process.aclose()
        log.debug("pid %d ended with %s", process.pid, process.returncode)


def readable(argv: Sequence[str]) -> str:
    """Return a command for a log, on one line. Long words and scripts are cut, and possible secrets are replaced by
    `***`.

    No secret belongs in an argv; this covers secrets in addresses and options that users pass."""
    words = []
    for before, word in zip(("", *argv), argv, strict=False):
        limit = _SCRIPT if before == "-c" and ("\n" in word or " " in word) else _WORD
        words.append(one_line(_without_secrets(word), limit))
    return one_line(shlex.join(words), _COMMAND)


def _without_secrets(word: str) -> str:
    word = _USERINFO.sub("***", word)
    return word[: match.end()] + "***" if (match := _SECRET_NAME.match(word)) else word


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads. A group that no longer exists is a success."""
    # PermissionError: we may not signal a program that changed its user; it is cleaned up in another way.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


async def _feed(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    try:
        if data:
            await process.stdin.send(data)
        await process.stdin.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, BrokenPipeError, ConnectionResetError):
        pass  # the program does not read its input: its exit code says whether that is a failure


async def _drain(stream: anyio.abc.ByteReceiveStream | None, into: bytearray, limit: int) -> None:
    assert stream is not None
    async for chunk in stream:
        if len(into) < limit:
            into += chunk[: limit - len(into)]
