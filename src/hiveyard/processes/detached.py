"""Run processes in a guest that needs only a shell: each process has its own runner.

The runner is a bash script in a process session of its own. It starts one process, stores its output and writes its
exit code. So nobody needs to be connected, and a later connection finds everything in the session directory; scripts.py
describes the files. A guest can write these files, so they are not trusted: the size and format of every answer are
checked. This module does not know which provider a guest belongs to.

A memory limit is enforced by polling, because a limit on address space breaks programs such as node (see limits.py).
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
from hiveyard.core.context import of_processes
from hiveyard.core.errors import (
    BadInput,
    CannotExecute,
    GuestDisconnected,
    NoSuchProcess,
    OutputDropped,
    ProcessEnded,
    ProcessError,
    ProcessNotStarted,
)
from hiveyard.core.ports import Guest
from hiveyard.kit.group import together
from hiveyard.kit.text import decode, one_line
from hiveyard.processes import common, inbox, scripts
from hiveyard.processes.runner import RUNNER

ROOT = "/session/processes"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[1-9][0-9]{0,2})?\Z")
_CLAIM = re.compile(r"(\d{1,10}) (\d{1,20}) (\d{1,12}\.\d{1,9})\Z")
_PID = re.compile(r"(\d{1,10}) (\d{1,12}\.\d{1,9}) (\d{1,9})\Z")
_CLOCK = re.compile(r"\d{1,12}\.\d{1,9}\Z")
_EXIT = re.compile(r"(\d{1,3}) (\d{1,12}\.\d{1,9})\Z")
_FILES = {"stdout": "out", "stderr": "err"}

_TIMEOUT = 60.0
_LIST_LIMIT = 4 << 20
_LOGS_LIMIT = 1 << 20
_NOBODY = 2**31 - 1
"""A pid that no Linux process has: following until its end reads the existing data."""
_SIGNALLED = 128
_MESSAGE_LIMIT = 16 << 20
_MOST_BYTES = 1 << 50
_MOST_SECONDS = 1e9
_MOST_RESTARTS = 10**9 - 1


class _Seen(NamedTuple):
    info: ProcessInfo
    watch: int


@of_processes
class Detached:
    """A ProcessManager. It holds no state; one object serves all guests."""

    name = "detached"
    _launch = scripts.LAUNCH
    _terminals = False
    _start_timeout: float | None = _TIMEOUT

    def __init__(self, root: str = ROOT) -> None:
        self._root = root

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        if spec.terminal and not self._terminals:
            raise BadInput(f"the {self.name} process manager has no terminal for {spec.name}")
        _check_spec(spec)
        first = await self._start(guest, spec, spec.name, 1)
        for number in range(2, spec.instances + 1):
            await self._start(guest, spec, f"{spec.name}@{number}", number)
        return first

    async def _start(self, guest: Guest, spec: ProcessSpec, name: str, number: int) -> ProcessInfo:
        script, fields = self._launch + scripts.START, _fields(spec, number)
        result = await self._run(guest, script, name, RUNNER, stdin=fields, timeout=self._start_timeout)
        if not result.ok:
            raise ProcessNotStarted(f"{name} was not started: {_why(spec, result)}")
        return self._one(name, result).info

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        _check(name)
        return self._one(name, await self._run(guest, scripts.GET, name)).info

    async def list(self, guest: Guest) -> list[ProcessInfo]:
        result = await self._run(guest, scripts.GET)
        return [seen.info for seen in _parse(result.stdout)]

    async def stop(self, guest: Guest, name: str, *, grace: float = 5.0) -> ProcessInfo:
        if not grace <= _MOST_SECONDS:
            raise BadInput(f"a grace is {_MOST_SECONDS:.0f} seconds at most, not {grace}")
        whole = max(0, math.ceil(grace))
        result = await self._stop(guest, name, whole)
        async with together() as group:
            for other in _parse(result.stdout):
                if other.info.name != name and other.watch:
                    group.start_soon(self._stop, guest, other.info.name, whole)
        return self._one(name, result).info

    async def _stop(self, guest: Guest, name: str, grace: int) -> Result:
        _check(name)
        result = await self._run(guest, scripts.STOP, name, str(grace), timeout=_TIMEOUT + grace)
        if result.status == common.STILL_RUNS:
            raise ProcessError(f"{name} was not stopped: some processes that it started cannot be killed")
        return result

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
        dropped = seen.info.dropped if file == "out" else seen.info.dropped_stderr
        if 0 < offset < dropped:
            raise OutputDropped(f"{stream} of {name} is kept from byte {dropped} on, not from {offset}", process=name)
        offset = max(offset, dropped)
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

    async def _ended(self, guest: Guest, name: str) -> None:
        """Wait until no run is active: another call may have started one."""
        seen = await self._look(guest, name)
        pieces = guest.follow(f"{self._root}/{name}/exit", pid=seen.watch or _NOBODY)
        async with aclosing(pieces):  # type: ignore[type-var]  # the port promises an iterator that can be closed
            async for _ in pieces:
                pass

    async def _look(self, guest: Guest, name: str) -> _Seen:
        """Return the process's state without measured values."""
        _check(name)
        return self._one(name, await self._run(guest, scripts.GET, name, "1"))

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
        timeout: float | None = _TIMEOUT,
        limit: int = _LIST_LIMIT,
    ) -> Result:
        """Run a script, and repeat it until it completes. In a guest that is full, programs do not start, or are killed
        for lack of memory, and the connection may break. That is temporary, and a stop that was interrupted leaves less
        to do for the next attempt. All scripts can be repeated."""
        command = Command(argv=("bash", "-c", script, "hv", self._root, *words), cwd="/")
        patience = _TIMEOUT if timeout is None else timeout
        until = anyio.current_time() + patience
        while True:
            with contextlib.suppress(CannotExecute, GuestDisconnected):
                result = await guest.run(command, stdin=stdin, timeout=timeout, limit=limit)
                if result.status < _SIGNALLED:
                    return result
            if anyio.current_time() > until:
                raise ProcessError(f"the guest could not run a program for {patience:.0f}s: it has no room for one")
            await anyio.sleep(0.2)


def _check_spec(spec: ProcessSpec) -> None:
    """Raise BadInput for values that the runner does not support: it counts in 64 bits, and opens the input file from
    another directory."""
    if spec.stdin is not None and (not spec.stdin.startswith(("/", "~/")) or "\0" in spec.stdin):
        raise BadInput(f"the path of an input file must be absolute or start with ~/, not {spec.stdin[:120]!r}")
    for what, size in (("output", spec.output_limit), ("memory", (spec.memory_mib or 0) << 20)):
        if not 0 <= size <= _MOST_BYTES:
            raise BadInput(f"the {what} limit of {spec.name} is 0 to {_MOST_BYTES} bytes, not {size}")
    restart = spec.restart
    if restart is not None and not (restart.max_restarts <= _MOST_RESTARTS and restart.min_uptime <= _MOST_SECONDS):
        raise BadInput(
            f"a restart policy has {_MOST_RESTARTS} restarts and {_MOST_SECONDS:.0f}s at most, not {restart}"
        )


def _fields(spec: ProcessSpec, number: int) -> bytes:
    """Return the spec file of an instance, in the format of the runner."""
    restart = spec.restart
    words = spec.command.words()
    env = {"HIVEYARD_INSTANCE": str(number), **spec.command.env} if spec.instances > 1 else spec.command.env
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
        str(spec.memory_mib << 10) if spec.memory_mib else "",
        "1" if spec.rotate else "",
        *(f"{path}@{number}" if path and number > 1 else path or "" for path in (spec.stdout, spec.stderr)),
        *(f"{name}={value}" for name, value in env.items()),
        *words,
    )
    try:
        return b"".join(field.encode("utf-8", "surrogateescape") + b"\0" for field in fields)
    except UnicodeEncodeError as error:
        lone = error.object[error.start]
        raise BadInput(f"the command of {spec.name} has a lone surrogate, {lone!r}: no program can get it") from error


def _parse(data: bytes) -> list[_Seen]:
    """Parse the output of the status scripts, eleven fields per process. Malformed lines are left out."""
    fields = data.split(b"\0")
    rows = [fields[at : at + 11] for at in range(0, len(fields) - 11, 11)]
    return [seen for row in rows if (seen := _seen([decode(field) for field in row])) is not None]


def _seen(row: list[str]) -> _Seen | None:
    name, watch, claim, pid, exit, over, out, err, now, kib, ticks = row
    claimed, begun, ended = _CLAIM.match(claim), _PID.match(pid), _EXIT.match(exit)
    if not _NAME.match(name):
        return None
    alive = _number(watch) or 0
    status = ProcessStatus.EXITED if ended else ProcessStatus.RUNNING if alive else ProcessStatus.LOST
    until = ended[2] if ended else now if alive and _CLOCK.match(now) else None
    uptime = max(0.0, float(until) - float(begun[2])) if begun and until else None
    memory, used = _number(kib), _number(ticks)
    info = ProcessInfo(
        name=name,
        status=status,
        pid=int(begun[1]) if begun else None,
        exit_code=min(int(ended[1]), 255) if ended else None,
        restarts=int(begun[3]) if begun else 0,
        started_at=float(begun[2]) if begun else float(claimed[3]) if claimed else None,
        ended_at=float(ended[2]) if ended else None,
        memory_mib=memory / 1024 if memory is not None else None,
        cpu_percent=used / uptime if used is not None and uptime else None,  # ticks are hundredths of a second
        uptime=uptime,
        memory_kills=_number(over) or 0,
        dropped=_number(out) or 0,
        dropped_stderr=_number(err) or 0,
    )
    return _Seen(info, alive)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


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
        common.NOT_STORED: f"its files cannot be stored in the machine: {_said(result)}",
        common.NOT_CLAIMED: "its runner gave no sign of life",
        common.NO_LOG: "a file for its output cannot be written",
        common.NO_PM2: "there is no pm2 in the machine's image",
        common.PM2_BUSY: "others that start processes in PM2 left it no turn",
        common.NO_TMUX: "there is no tmux in the machine's image",
    }
    return reasons.get(result.status) or _said(result)
