"""The process manager that needs nothing but a shell: each process has a runner of its own in the guest.

The runner is a bash script in a session of its own. It owns one process, keeps its outputs and writes its exit code,
so nobody needs to be connected, and whoever connects later finds all of it in the session directory. See scripts.py
for the files. It must not know which provider the guest belongs to, and believes no file that a guest could write:
every answer is bounded and its shape is checked.

`memory_mib` of a spec is not enforced here (a limit on address space breaks programs such as node): the machine's own
memory is the bound. `cpu_percent` is not told.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

import anyio

from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec, ProcessStatus, Result
from hiveyard.core.errors import (
    BadInput,
    CannotExecute,
    GuestDisconnected,
    NoSuchProcess,
    ProcessEnded,
    ProcessError,
    ProcessNotStarted,
)
from hiveyard.core.ports import Guest
from hiveyard.kit.text import decode, one_line
from hiveyard.processes import common, inbox, scripts
from hiveyard.processes.runner import RUNNER

ROOT = "/session/processes"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_CLAIM = re.compile(r"(\d{1,10}) (\d{1,20}) (\d{1,12}\.\d{1,9})\Z")
_PID = re.compile(r"(\d{1,10}) (\d{1,12}\.\d{1,9}) (\d{1,9})\Z")
_EXIT = re.compile(r"(\d{1,3}) (\d{1,12}\.\d{1,9})\Z")
_FILES = {"stdout": "out", "stderr": "err"}

_TIMEOUT = 60.0
_LIST_LIMIT = 4 << 20
_LOGS_LIMIT = 1 << 20
_NOBODY = 2**31 - 1
"""A pid that no Linux gives to a process: following until its end reads what there is."""
_SIGNALLED = 128
_MESSAGE_LIMIT = 16 << 20


class _Seen(NamedTuple):
    info: ProcessInfo
    watch: int


class Detached:
    """A ProcessManager. It holds no state; one object serves all guests."""

    name = "detached"
    _launch = scripts.LAUNCH
    _terminals = False

    def __init__(self, root: str = ROOT) -> None:
        self._root = root

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        if spec.instances != 1:
            raise BadInput(f"the {self.name} process manager runs one instance of a process, not {spec.instances}")
        if spec.terminal and not self._terminals:
            raise BadInput(f"the {self.name} process manager has no terminal for {spec.name}")
        result = await self._run(guest, self._launch + scripts.START, spec.name, RUNNER, stdin=_fields(spec))
        if not result.ok:
            raise ProcessNotStarted(f"{spec.name} was not started: {_why(spec, result)}")
        return self._one(spec.name, result).info

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        return (await self._look(guest, name)).info

    async def list(self, guest: Guest) -> list[ProcessInfo]:
        result = await self._run(guest, scripts.GET)
        return [seen.info for seen in _parse(result.stdout)]

    async def stop(self, guest: Guest, name: str, *, grace: float = 5.0) -> ProcessInfo:
        _check(name)
        whole = max(0, math.ceil(grace))
        result = await self._run(guest, scripts.STOP, name, str(whole), timeout=_TIMEOUT + whole)
        if result.status == common.STILL_RUNS:
            raise ProcessError(f"{name} was not stopped: some of what it started cannot be killed")
        return self._one(name, result).info

    async def logs(self, guest: Guest, name: str, *, stream: str = "stdout", lines: int = 100) -> bytes:
        _check(name)
        result = await self._run(guest, scripts.LOGS, name, _file(stream), str(max(0, lines)), limit=_LOGS_LIMIT)
        if result.status == common.NO_SUCH:
            raise _no_such(name)
        return result.stdout

    async def follow(
        self, guest: Guest, name: str, *, stream: str = "stdout", offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        file = _file(stream)
        seen = await self._look(guest, name)
        path = f"{self._root}/{name}/{file}"
        pieces = guest.follow(path, offset=offset, pid=seen.watch or _NOBODY)
        async with aclosing(pieces):  # type: ignore[type-var]  # the port promises an iterator that can be closed
            async for piece in pieces:
                yield piece

    async def remove(self, guest: Guest, name: str) -> None:
        _check(name)
        result = await self._run(guest, scripts.REMOVE, name)
        if result.status == common.STILL_RUNS:
            raise ProcessError(f"{name} still runs and cannot be forgotten", hint="stop it first")
        if not result.ok:
            raise ProcessError(f"{name} was not removed: {_said(result)}")

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        if len(data) > _MESSAGE_LIMIT:
            raise BadInput(f"a message of {len(data)} bytes is too long: a process takes at most {_MESSAGE_LIMIT}")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        status = await self._add(guest, name, digest, data)
        if status == common.ENDED:
            raise ProcessEnded(f"{name} has ended: nothing can be sent to it any more", process=name)
        if status == common.CLOSED:
            raise ProcessEnded(f"the inbox of {name} is closed: nothing can be sent to it any more", process=name)
        return status != common.KNOWN

    async def close_inbox(self, guest: Guest, name: str) -> None:
        await self._add(guest, name, inbox.CLOSING, b"")

    async def _add(self, guest: Guest, name: str, key: str, data: bytes) -> int:
        _check(name)
        result = await self._run(guest, inbox.SEND, name, key, str(len(data)), stdin=data)
        if result.status == common.NO_SUCH:
            raise _no_such(name)
        if result.status == common.NO_INBOX:
            raise BadInput(f"{name} has no inbox", hint="start it with ProcessSpec(inbox=True)")
        if result.status not in (0, common.KNOWN, common.CLOSED, common.ENDED):
            raise ProcessError(f"a message to {name} was not stored: {_said(result)}", process=name)
        return result.status

    async def _look(self, guest: Guest, name: str) -> _Seen:
        _check(name)
        return self._one(name, await self._run(guest, scripts.GET, name))

    def _one(self, name: str, result: Result) -> _Seen:
        if result.status == common.NO_SUCH:
            raise _no_such(name)
        for seen in _parse(result.stdout):
            if seen.info.name == name:
                return seen
        raise ProcessError(f"the guest gave no answer about {name}: {_said(result)}")

    async def _run(
        self,
        guest: Guest,
        script: str,
        *words: str,
        stdin: bytes = b"",
        timeout: float = _TIMEOUT,
        limit: int = _LIST_LIMIT,
    ) -> Result:
        """Run a script until it comes to its end. In a guest that is full, programs do not start or are killed for
        want of memory, and so may be what connects us; that passes, or the try of a stop leaves less to do for the
        next. Running one of our scripts twice does no harm."""
        command = Command(argv=("bash", "-c", script, "hv", self._root, *words), cwd="/")
        until = anyio.current_time() + timeout
        while True:
            with contextlib.suppress(CannotExecute, GuestDisconnected):
                result = await guest.run(command, stdin=stdin, timeout=timeout, limit=limit)
                if result.status < _SIGNALLED:
                    return result
            if anyio.current_time() > until:
                raise ProcessError(f"the guest could not run a program for {timeout:.0f}s: it has no room for one")
            await anyio.sleep(0.2)


def _fields(spec: ProcessSpec) -> bytes:
    """The spec file, as the runner reads it."""
    restart = spec.restart
    words = spec.command.words()
    if "=" in words[0]:
        # env(1) would take the program for one more variable.
        words = ("bash", "-c", 'exec -- "$@"', "hv", *words)
    fields = (
        secrets.token_hex(16),
        spec.command.cwd or "~",
        spec.stdin or "/dev/null",
        str(spec.output_limit),
        str(restart.max_restarts if restart else 0),
        str(int(restart.min_uptime * 1e6) if restart else 0),
        "1" if spec.terminal else "",
        "1" if spec.inbox else "",
        *(f"{name}={value}" for name, value in spec.command.env.items()),
        *words,
    )
    return b"".join(field.encode("utf-8", "surrogateescape") + b"\0" for field in fields)


def _parse(data: bytes) -> list[_Seen]:
    """What the status scripts print, six fields a process. What has another shape is left out."""
    fields = data.split(b"\0")
    rows = [fields[at : at + 6] for at in range(0, len(fields) - 6, 6)]
    return [seen for row in rows if (seen := _seen([decode(field) for field in row])) is not None]


def _seen(row: list[str]) -> _Seen | None:
    name, watch, claim, pid, exit, kib = row
    claimed, begun, ended = _CLAIM.match(claim), _PID.match(pid), _EXIT.match(exit)
    if not _NAME.match(name):
        return None
    alive = int(watch) if watch.isascii() and watch.isdigit() and len(watch) < 10 else 0
    info = ProcessInfo(
        name=name,
        status=ProcessStatus.EXITED if ended else ProcessStatus.RUNNING if alive else ProcessStatus.LOST,
        pid=int(begun[1]) if begun else None,
        exit_code=min(int(ended[1]), 255) if ended else None,
        restarts=int(begun[3]) if begun else 0,
        started_at=float(begun[2]) if begun else float(claimed[3]) if claimed else None,
        ended_at=float(ended[2]) if ended else None,
        memory_mib=int(kib) / 1024 if kib.isascii() and kib.isdigit() and len(kib) < 15 else None,
    )
    return _Seen(info, alive)


def _check(name: str) -> None:
    if not _NAME.match(name):
        raise NoSuchProcess(f"there is no process {one_line(name, 120)!r}: that is no name for one")


def _file(stream: str) -> str:
    if stream not in _FILES:
        raise BadInput(f"a process has the outputs stdout and stderr, not {one_line(stream, 40)!r}")
    return _FILES[stream]


def _no_such(name: str) -> NoSuchProcess:
    return NoSuchProcess(f"no process {name} was started in this session")


def _said(result: Result) -> str:
    return one_line(decode(result.stderr)) or f"exit code {result.status}"


def _why(spec: ProcessSpec, result: Result) -> str:
    reasons = {
        common.NO_DIRECTORY: f"the directory {spec.command.cwd or '~'} cannot be entered",
        common.NO_PROGRAM: f"{one_line(spec.command.words()[0], 120)!r} is no program there",
        common.NO_STDIN: f"its input {spec.stdin} is no file that can be read",
        common.NOT_CLAIMED: "its runner gave no sign of life",
        common.NO_TMUX: "there is no tmux in the machine's image",
    }
    return reasons.get(result.status) or _said(result)
