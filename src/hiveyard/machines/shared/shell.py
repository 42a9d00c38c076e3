"""The inside of any machine that can run bash, made from one ability: to open a program in it.

A provider implements `Exec`; `ShellGuest` is the whole Guest on top of it. It must not know which backend it talks
to, and it believes nothing that comes back: every answer is bounded, every exit code is checked.
"""

from __future__ import annotations

import contextlib
import math
import posixpath
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

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
from hiveyard.machines.shared.batch import Step, step, trips
from hiveyard.machines.shared.dialogue import Commanded, Kept, Opened, converse
from hiveyard.machines.shared.file_errors import file_error

_ARGV_LIMIT = 120_000
_ANSWER_LIMIT = 4096
_HELD_LIMIT = 1 << 20
_KILL_BUDGET = 20.0
_KILL_PAUSE = 0.2
_BEGUN_KILL_BUDGET = 2.0  # a machine that stands still cannot be told
_SIGNALLED = 128
_STAYED = 1  # the KILL script's exit code when it could not end all

# Bash keeps these for itself and cannot export what the caller wants them to be; env(1) can.
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
    )
)


class Exec(Protocol):
    """The one thing a provider does for a guest."""

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Stream]:
        """Run `argv` in the guest as its unprivileged user, without a terminal, in a session of its own (setsid)
        where that can be had, with HOME, USER, PATH and LANG set. Words hold any character but NUL; file names that
        are not UTF-8 come as surrogates (encode with `surrogateescape`).

        A machine that stands still is waited for, until whoever waits is cancelled. Leaving the block closes stdin and
        lets go of the outputs; it never waits for long. It need not kill: the guest does. Raises MachineLost;
        GuestDisconnected when the machine lives; CannotExecute when it has no room for one more program.
        """


@of_guests
class ShellGuest:
    """A Guest on top of an Exec. `machine` is whose inside it is, for errors; a provider `of_machines` sets it."""

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
        argv = self._run_argv(token, command)
        out, err = Kept(limit), Commanded(token, limit)
        status, limited = None, math.inf if timeout is None else timeout
        deadline = anyio.current_time() + limited
        with anyio.CancelScope(deadline=deadline) as beginning:
            async with self._opened(token, argv) as stream:
                beginning.deadline = math.inf
                status = await self._status_by(deadline, converse(stream, stdin, out.add, err.add), token, err)
        if status is None:
            shown = one_line(" ".join(command.words()))
            raise CommandTimeout(f"{shown!r} did not end within {limited:g}s and was killed")
        self._check_started(command, err, status)
        return Result(status, bytes(out.data), bytes(err.data), out.cut or err.cut)

    async def _status_by(self, deadline: float, talk: Awaitable[int], token: str, err: Commanded) -> int | None:
        """The exit code of a command; None when it was late, and is dead."""
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
                # It may have begun, and nobody have heard of it.
                await self._kill_before_leaving(token, Commanded(token, 0), _BEGUN_KILL_BUDGET)
                raise
            yield stream

    @asynccontextmanager
    async def open(self, command: Command) -> AsyncIterator[Stream]:
        token = secrets.token_hex(8)
        said = Commanded(token, _HELD_LIMIT)
        async with self._opened(token, self._run_argv(token, command)) as stream:
            opened = Opened(stream, said, partial(self._check_opened, command, said))
            try:
                await opened.started()
                yield opened
            finally:
                if not opened.over:
                    await self._kill_before_leaving(token, said)

    def _run_argv(self, token: str, command: Command) -> tuple[str, ...]:
        return _words(scripts.RUN, token, command, self._capabilities)

    def _check_opened(self, command: Command, err: Commanded, status: int) -> None:
        """In the block of `open`, out of which errors do not go through that."""
        named = {"machine": self.machine, "command": command.name or ""}
        with error_context("open", lambda: {what: name for what, name in named.items() if name}):
            self._check_started(command, err, status)

    def _check_started(self, command: Command, err: Commanded, status: int) -> None:
        shown = one_line(command.words()[0])
        if err.failure == "cwd":
            raise CannotExecute(f"cannot run {shown!r}: the directory {command.cwd or '~'} cannot be entered")
        if err.failure == "exec":
            raise CannotExecute(f"cannot run {shown!r}: {one_line(decode(bytes(err.data))) or 'it cannot be started'}")
        if err.pid is None:
            said = one_line(decode(err.unread()))
            raise CannotExecute(f"the guest's bash did not start: exit code {status}: {said}")

    async def _kill(self, token: str, err: Commanded, budget: float = _KILL_BUDGET) -> None:
        """End a command and all that it started; returns when they are gone. Raises MachineLost when they stay."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(budget) as scope:
            argv = ("bash", "-c", scripts.KILL, "hv", token, str(err.pid or -1))
            # In a guest that is full of processes it may take several attempts to start one more.
            while (status := await self._status(argv)) not in (0, _STAYED):  # noqa: ASYNC110
                await anyio.sleep(_KILL_PAUSE)
            if status == 0:
                return
        why = "did not answer" if scope.cancelled_caught else f"said {status}"
        raise MachineLost(f"the guest could not end the processes of a command: it {why}")

    async def _status(self, argv: Sequence[str]) -> int | None:
        """The exit code of a program; None when the guest could not start it, or broke off."""
        with contextlib.suppress(CannotExecute, GuestDisconnected):
            async with self._exec.open(argv) as stream:
                # Its stdin stays open until it ends: the script sleeps by waiting for it.
                return await stream.wait()
        return None

    async def _kill_before_leaving(self, token: str, err: Commanded, budget: float = _KILL_BUDGET) -> None:
        # A machine that is gone or stuck is found out by whoever cancelled us; it must not hide the cancelling.
        with contextlib.suppress(ProviderError):
            await self._kill(token, err, budget)

    async def read(self, path: str, *, offset: int = 0, limit: int = 64 << 20) -> bytes:
        out = Kept(limit + 1)
        await self._file("read", scripts.READ, path, str(offset), str(limit + 1), out=out)
        if len(out.data) > limit:
            raise GuestFileTooLarge(f"{path} has more than the {limit} bytes that were asked for", path=path)
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
        for trip in trips([step(one, self._path(one.path)) for one in steps]):
            if (failed := await self._trip(trip)) is not None:
                number, error = failed
                if number is not None:
                    error.context["step"] = str(done + number)
                raise error
            done += len(trip)

    async def _step(self, wanted: FileStep) -> None:
        if (failed := await self._trip([step(wanted, self._path(wanted.path))])) is not None:
            raise failed[1]

    async def _trip(self, steps: Sequence[Step]) -> tuple[int | None, GuestFileError] | None:
        """Do steps in one round trip. Returns which failed, where that is known, and why."""
        words, out, said = [word for one in steps for word in one.words], Kept(_ANSWER_LIMIT), Kept(_ANSWER_LIMIT)
        async with self._exec.open(("bash", "-c", scripts.BATCH, "hv", *words)) as stream:
            status = await converse(stream, b"".join(one.data for one in steps), out.add, said.add)
        if status == 0:
            return None
        number = bytes(out.data).strip()
        if not number and status > _SIGNALLED and len(steps) > 1:
            return None, GuestFileError(f"the guest killed what did {len(steps)} steps with files: exit code {status}")
        failed = min(int(number) if number.isdigit() and len(number) < 6 else len(steps), len(steps) - 1)
        return failed, file_error(steps[failed].verb, steps[failed].path, status, bytes(said.data))

    async def remove_tree(self, path: str) -> None:
        target = self._path(path)
        bare = posixpath.normpath("/" + target.lstrip("/"))
        for kept in (self._capabilities.home, self._capabilities.session):
            if posixpath.commonpath([bare, kept]) == bare:
                raise BadInput(f"{path} is not for removing: {kept} is needed by the machine")
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
                continue  # connecting again is bounded in time: it ends in MachineLost
            if status > _SIGNALLED:
                # Whoever may kill all of the guest's processes kills this one too.
                status = None
                await anyio.sleep(_KILL_PAUSE)
        if status != 0:
            raise file_error("follow", path, status, b"")

    async def _file(
        self, verb: str, script: str, path: str, *extra: str, stdin: bytes = b"", out: Kept | None = None
    ) -> None:
        said = Kept(_ANSWER_LIMIT)
        async with self._exec.open(self._script(script, path, *extra)) as stream:
            status = await converse(stream, stdin, (out or Kept(_ANSWER_LIMIT)).add, said.add)
        if status != 0:
            raise file_error(verb, path, status, bytes(said.data))

    def _script(self, script: str, path: str, *extra: str) -> tuple[str, ...]:
        return ("bash", "-c", script, "hv", self._path(path), *extra)

    def _path(self, path: str) -> str:
        return _absolute(path, self._capabilities)


def terminal_words(token: str, command: Command, capabilities: Capabilities) -> tuple[str, ...]:
    """The argv, for a guest, of a command that a provider gives a terminal of its own. `token` is in its environment
    as HIVEYARD_RUN. Raises BadInput, CannotExecute."""
    return _words(scripts.TERMINAL, token, command, capabilities)


def _words(script: str, token: str, command: Command, capabilities: Capabilities) -> tuple[str, ...]:
    words = command.words()
    own = [f"{name}={value}" for name, value in command.env.items() if name in _BASH_OWN]
    if own:
        words = ("env", "--", *own, *words)
    env = [f"{name}={value}" for name, value in command.env.items() if name not in _BASH_OWN]
    cwd = _absolute(command.cwd or "~", capabilities)
    argv = ("bash", "-c", script, "hv", token, cwd, str(len(env)), *env, *words)
    size = sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in argv)
    if size > _ARGV_LIMIT:
        raise CannotExecute(
            f"the command with its environment is {size} bytes long, at most {_ARGV_LIMIT} fit",
            hint="give large input by stdin or by a file",
        )
    return argv


def _absolute(path: str, capabilities: Capabilities) -> str:
    """`path` as the guest takes it: absolute, with the home directory in the place of `~`."""
    if "\0" in path:
        raise BadInput(f"a path cannot contain a NUL character: {path[:80]!r}")
    if path == "~" or path.startswith("~/"):
        return capabilities.home + path[1:]
    if not path.startswith("/"):
        raise BadInput(f"a path in a guest is absolute or starts with ~/, not {path[:80]!r}")
    return path
