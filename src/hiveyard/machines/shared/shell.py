"""Implement a Guest for any machine that can run bash, on top of one ability: to start a program in it.

A provider implements `Exec`, and `ShellGuest` does the rest. It must not know which backend it uses. It trusts no
answer of a guest: every answer is limited in size, and every exit code is checked.
"""

from __future__ import annotations

import contextlib
import math
import posixpath
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple, Protocol

import anyio

from hiveyard.core.commands import Command, Result
from hiveyard.core.context import error_context, of_guests
from hiveyard.core.errors import (
    BadInput,
    CannotExecute,
    CommandTimeout,
    GuestDisconnected,
    GuestFileError,
    GuestFileNotFound,
    GuestFileTooLarge,
    GuestNotADirectory,
    MachineLost,
    ProviderError,
)
from hiveyard.core.files import FileStep, MakeDirectory, Remove, WriteFile
from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Stream
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.shared import scripts
from hiveyard.machines.shared.batch import Step, encode, round_trips
from hiveyard.machines.shared.dialogue import BoundedOutput, CommandStderr, CommandStream, communicate
from hiveyard.machines.shared.file_errors import file_error

_ARGV_LIMIT = 120_000  # bytes that every way into a guest carries as arguments; longer commands go by stdin
# The kernel's limits: for one argument or variable (MAX_ARG_STRLEN, with the NUL at its end), and for all together
# where the stack is not limited. It usually is, to 8 MiB, which gives a quarter of that: then the kernel refuses.
_WORD_LIMIT = (128 << 10) - 1
_WORDS_LIMIT = 6 << 20
_TOO_LONG = "give large input by stdin or by a file"
_ANSWER_LIMIT = 4096
_HELD_LIMIT = 1 << 20
_KILL_BUDGET = 20.0
_KILL_PAUSE = 0.2
_BEGUN_KILL_BUDGET = 2.0  # a frozen machine does not answer
_SIGNALLED = 128  # exit codes above it are signals
_STAYED = 1  # the KILL script's exit code when it could not kill all processes

# Bash sets these variables itself and cannot export the caller's values; env(1) can.
_BASH_OWN = frozenset(
    (
        "BASH",
        "BASHOPTS",
        "BASHPID",
        "BASH_ARGC",
        "BASH_ARGV",
        "BASH_ARGV0",
        "BASH_CMDS",
        "BASH_COMMAND",
        "BASH_LINENO",
        "BASH_SOURCE",
        "BASH_SUBSHELL",
        "BASH_VERSINFO",
        "COMP_WORDBREAKS",
        "DIRSTACK",
        "EPOCHREALTIME",
        "EPOCHSECONDS",
        "EUID",
        "FUNCNAME",
        "GROUPS",
        "HISTCMD",
        "LINENO",
        "PPID",
        "RANDOM",
        "SECONDS",
        "SHELLOPTS",
        "SHLVL",
        "SRANDOM",
        "UID",
        "_",
        "__t",
        "__n",
        "__w",
    )
)


class Exec(Protocol):
    """The ability of a provider to start programs in a guest."""

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Stream]:
        """Run `argv` in the guest as its unprivileged user, without a terminal, in a session of its own (setsid)
        where that is possible, with HOME, USER, PATH and LANG set. Words hold any character but NUL; file names that
        are not UTF-8 are given as surrogates (encode with `surrogateescape`).

        If the machine is frozen, wait until it continues. Leaving the block closes stdin and the outputs; it never
        waits for long. It need not kill the program: the guest does. Raises MachineLost; GuestDisconnected if the
        machine still runs; CannotExecute if it has no capacity for one more program.
        """


@of_guests
class ShellGuest:
    """A Guest on top of an Exec. `machine` is the machine's name for errors; `of_machines` sets it."""

    def __init__(self, exec: Exec, capabilities: Capabilities, machine: str = "") -> None:
        self.machine = machine
        self._exec = exec
        self._capabilities = capabilities

    async def run(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        limit: int = 16 << 20,
    ) -> Result:
        token = secrets.token_hex(8)
        argv, early = _invocation(token, command, self._capabilities)
        out, err = BoundedOutput(limit), CommandStderr(token, limit)
        status, limited = None, math.inf if timeout is None else timeout
        deadline = anyio.current_time() + limited
        with anyio.CancelScope(deadline=deadline) as beginning:
            async with self._opened(token, argv) as stream:
                beginning.deadline = math.inf
                talk = communicate(stream, early + stdin, out.add, err.add)
                status = await self._status_by(deadline, talk, token, err)
        if status is None:
            shown = one_line(" ".join(command.words()))
            raise CommandTimeout(f"{shown!r} did not end within {limited:g}s and was killed")
        self._check_started(command, err, status)
        return Result(status, bytes(out.data), bytes(err.data), out.truncated or err.truncated)

    async def _status_by(self, deadline: float, talk: Awaitable[int], token: str, err: CommandStderr) -> int | None:
        """Return the exit code of a command, None if it was killed at the deadline."""
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                return await talk
        except TimeoutError:
            await self._kill(token, err)
            return None
        except anyio.get_cancelled_exc_class():
            await self._kill_before_leaving(token, err)
            raise

    @asynccontextmanager
    async def _opened(self, token: str, argv: Sequence[str]) -> AsyncIterator[Stream]:
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(self._exec.open(argv))
            except anyio.get_cancelled_exc_class():
                # It may have started already.
                await self._kill_before_leaving(token, CommandStderr(token, 0), _BEGUN_KILL_BUDGET)
                raise
            yield stream

    @asynccontextmanager
    async def open(self, command: Command) -> AsyncIterator[Stream]:
        token = secrets.token_hex(8)
        err = CommandStderr(token, _HELD_LIMIT)
        argv, early = _invocation(token, command, self._capabilities)
        async with self._opened(token, argv) as stream:
            opened = CommandStream(stream, err, partial(self._check_opened, command, err))
            try:
                if early:
                    await stream.send(early)
                await opened.started()
                yield opened
            finally:
                if not opened.over:
                    await self._kill_before_leaving(token, err)

    def _check_opened(self, command: Command, err: CommandStderr, status: int) -> None:
        """Check as in `open`: errors raised inside its block do not pass through its decorator."""
        named = {"machine": self.machine, "command": command.name or ""}
        with error_context("open", lambda: {what: name for what, name in named.items() if name}):
            self._check_started(command, err, status)

    def _check_started(self, command: Command, err: CommandStderr, status: int) -> None:
        shown = one_line(command.words()[0])
        if err.failure == "cwd":
            raise CannotExecute(f"cannot run {shown!r}: the directory {command.cwd or '~'} cannot be entered")
        if err.failure == "exec":
            why = one_line(decode(bytes(err.data))) or "it cannot be started"
            raise CannotExecute(f"cannot run {shown!r}: {why}", hint=_TOO_LONG if "too long" in why else "")
        if err.pid is None:
            output = one_line(decode(err.unread()))
            raise CannotExecute(f"the guest's bash did not start: exit code {status}: {output}")

    async def _kill(self, token: str, err: CommandStderr, budget: float = _KILL_BUDGET) -> None:
        """Kill a command and all that it started, and wait until they have ended. Raises MachineLost if some remain."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(budget) as scope:
            argv = ("bash", "-c", scripts.KILL, "hv", token, str(err.pid or -1))
            # In a guest whose process table is full it may take several attempts to start one more program.
            while (status := await self._status(argv)) not in (0, _STAYED):  # noqa: ASYNC110
                await anyio.sleep(_KILL_PAUSE)
            if status == 0:
                return
        why = "did not answer" if scope.cancelled_caught else f"answered {status}"
        raise MachineLost(f"the guest could not kill the processes of a command: it {why}")

    async def _status(self, argv: Sequence[str]) -> int | None:
        """Return the exit code of a program, None if the guest could not start it or disconnected."""
        with contextlib.suppress(CannotExecute, GuestDisconnected):
            async with self._exec.open(argv) as stream:
                # Its stdin stays open until it ends: the script sleeps by waiting for it.
                return await stream.wait()
        return None

    async def _kill_before_leaving(self, token: str, err: CommandStderr, budget: float = _KILL_BUDGET) -> None:
        # The canceller finds out itself that a machine is lost or stuck; that error must not hide the cancellation.
        with contextlib.suppress(ProviderError):
            await self._kill(token, err, budget)

    async def read(self, path: str, *, offset: int = 0, limit: int = 64 << 20) -> bytes:
        out = BoundedOutput(limit + 1)
        await self._file("read", scripts.READ, path, str(offset), str(limit + 1), out=out)
        if len(out.data) > limit:
            raise GuestFileTooLarge(f"{path} has more than the requested {limit} bytes", path=path)
        return bytes(out.data)

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        await self._file("write", scripts.WRITE, path, f"{mode:o}", stdin=data)

    async def write_atomic(
        self,
        path: str,
        data: bytes,
        *,
        mode: int = 0o644,
        parents: bool = True,
        owner: str | None = None,
        group: str | None = None,
    ) -> None:
        await self._step(WriteFile(path=path, data=data, mode=mode, parents=parents, owner=owner, group=group))

    async def exists(self, path: str) -> bool:
        try:
            await self._file("look at", scripts.EXISTS, path)
        except (GuestFileNotFound, GuestNotADirectory):
            return False
        return True

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        await self._step(MakeDirectory(path=path, mode=mode, parents=parents))

    async def remove(self, path: str) -> None:
        await self._step(Remove(path=path))

    async def batch(self, steps: Sequence[FileStep]) -> None:
        done = 0
        for trip in round_trips([encode(one, self._path(one.path)) for one in steps]):
            if (failed := await self._trip(trip)) is not None:
                number, error = failed
                if number is not None:
                    error.context["step"] = str(done + number)
                raise error
            done += len(trip)

    async def _step(self, step: FileStep) -> None:
        if (failed := await self._trip([encode(step, self._path(step.path))])) is not None:
            raise failed[1]

    async def _trip(self, steps: Sequence[Step]) -> tuple[int | None, GuestFileError] | None:
        """Do steps in one round trip. Returns the number of the failed one, if it is known, and the error."""
        words = [word for one in steps for word in one.words]
        out, err = BoundedOutput(_ANSWER_LIMIT), BoundedOutput(_ANSWER_LIMIT)
        async with self._exec.open(("bash", "-c", scripts.BATCH, "hv", *words)) as stream:
            status = await communicate(stream, b"".join(one.data for one in steps), out.add, err.add)
        if status == 0:
            return None
        number = bytes(out.data).strip()
        if not number and status > _SIGNALLED and len(steps) > 1:
            return None, GuestFileError(
                f"the guest killed the script for {len(steps)} steps with files: exit code {status}"
            )
        failed = min(int(number) if number.isdigit() and len(number) < 6 else len(steps), len(steps) - 1)
        return failed, file_error(steps[failed].verb, steps[failed].path, status, bytes(err.data))

    async def remove_tree(self, path: str) -> None:
        target = self._path(path)
        bare = posixpath.normpath("/" + target.lstrip("/"))
        for kept in (self._capabilities.home, self._capabilities.session):
            if posixpath.commonpath([bare, kept]) == bare:
                raise BadInput(f"{path} cannot be removed: the machine needs {kept}")
        await self._file("remove", scripts.REMOVE_TREE, target.rstrip("/"))

    async def follow(self, path: str, *, offset: int = 0, pid: int | None = None) -> AsyncGenerator[bytes, None]:
        status = None
        while status is None:
            argv = self._script(scripts.FOLLOW, path, str(offset + 1), "" if pid is None else str(pid))
            try:
                async with self._exec.open(argv) as stream:
                    while piece := await stream.receive():
                        offset += len(piece)
                        yield piece
                    status = await stream.wait()
            except GuestDisconnected:
                continue  # connecting again has a time limit: it ends in MachineLost
            if status > _SIGNALLED:
                # A command that kills all processes of the guest kills this one, too.
                status = None
                await anyio.sleep(_KILL_PAUSE)
        if status != 0:
            raise file_error("follow", path, status, b"")

    async def _file(
        self, verb: str, script: str, path: str, *extra: str, stdin: bytes = b"", out: BoundedOutput | None = None
    ) -> None:
        err = BoundedOutput(_ANSWER_LIMIT)
        async with self._exec.open(self._script(script, path, *extra)) as stream:
            status = await communicate(stream, stdin, (out or BoundedOutput(_ANSWER_LIMIT)).add, err.add)
        if status != 0:
            raise file_error(verb, path, status, bytes(err.data))

    def _script(self, script: str, path: str, *extra: str) -> tuple[str, ...]:
        return ("bash", "-c", script, "hv", self._path(path), *extra)

    def _path(self, path: str) -> str:
        return _absolute(path, self._capabilities)


def terminal_words(token: str, command: Command, capabilities: Capabilities) -> tuple[str, ...]:
    """Return the argv that runs a command on a terminal in a guest. `token` is in its environment as HIVEYARD_RUN.

    Raises BadInput, CannotExecute."""
    cwd, env, words = _parts(command, capabilities)
    argv = ("bash", "-c", scripts.TERMINAL, "hv", token, cwd, str(len(env)), *env, *words)
    if (size := _size(argv)) > _ARGV_LIMIT:
        raise CannotExecute(
            f"the command with its environment is {size} bytes long, at most {_ARGV_LIMIT} fit", hint=_TOO_LONG
        )
    return argv


class _Invocation(NamedTuple):
    """The argv that runs a command in a guest, and the bytes that its stdin begins with."""

    argv: tuple[str, ...]
    early: bytes = b""


def _invocation(token: str, command: Command, capabilities: Capabilities) -> _Invocation:
    cwd, env, words = _parts(command, capabilities)
    argv = ("bash", "-c", scripts.RUN, "hv", token, cwd, str(len(env)), *env, *words)
    if _size(argv) <= _ARGV_LIMIT:
        return _Invocation(argv)
    encoded = [word.encode("utf-8", "surrogateescape") for word in (*env, *words)]
    if (longest := max(map(len, encoded))) > _WORD_LIMIT:
        raise CannotExecute(
            f"one argument or variable of the command is {longest} bytes long, at most {_WORD_LIMIT} fit",
            hint=_TOO_LONG,
        )
    if (size := sum(len(word) + 1 for word in encoded)) > _WORDS_LIMIT:
        raise CannotExecute(
            f"the command with its environment is {size} bytes long, at most {_WORDS_LIMIT} fit", hint=_TOO_LONG
        )
    early = b"".join(b"'%s' " % word.replace(b"'", rb"'\''") for word in encoded) + token.encode()
    return _Invocation(("bash", "-c", scripts.RUN_LONG, "hv", token, cwd, str(len(env)), str(len(early))), early)


def _parts(command: Command, capabilities: Capabilities) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the directory of a command, the variables that bash sets for it, and its words."""
    words = command.words()
    own = [f"{name}={value}" for name, value in command.env.items() if name in _BASH_OWN]
    if own:
        words = ("env", "--", *own, *words)
    env = [f"{name}={value}" for name, value in command.env.items() if name not in _BASH_OWN]
    return _absolute(command.cwd or "~", capabilities), env, tuple(words)


def _size(argv: Sequence[str]) -> int:
    """Return the size of arguments on their way. Docker's API needs a word that is not UTF-8 as escapes, which are four
    times as long."""
    return sum(_length(word) + 1 for word in argv)


def _length(word: str) -> int:
    encoded = word.encode("utf-8", "surrogateescape")
    return len(encoded) if word.isascii() or encoded == word.encode("utf-8", "replace") else 4 * len(encoded)


def _absolute(path: str, capabilities: Capabilities) -> str:
    """Return `path` for the guest: absolute, with `~` replaced by the home directory."""
    if "\0" in path:
        raise BadInput(f"a path cannot contain a NUL character: {path[:80]!r}")
    if path == "~" or path.startswith("~/"):
        return capabilities.home + path[1:]
    if not path.startswith("/"):
        raise BadInput(f"a path in a guest is absolute or starts with ~/, not {path[:80]!r}")
    return path
