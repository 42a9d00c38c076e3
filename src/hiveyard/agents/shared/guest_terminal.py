"""Run a program in a terminal and write the feed of its activity. This file runs in the guest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

TICK = 0.1
"""Seconds between two polls."""

LAST_POLLS = 12
"""Polls after the program has ended."""
DELAY = 5.0
"""Seconds until a prompt that an interrupted sender sent appears in the feed."""
GRACE = 4.0
"""Seconds for the program to exit after its terminal is closed."""

_STEP = 1 << 16
_POSITION = re.compile(rb'\{"at":\["([^"\\]+)",(\d+)\]')


class Refused(Exception):
    """The program did not accept a prompt or an interrupt. The message says why."""


class Feed:
    """The file of JSON lines that Hiveyard reads. Each line is added by one write, so readers see complete lines."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def prepare(self) -> None:
        """Create the file, and remove an incomplete last line that a dying machine left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            end = at = file.tell()
            while at > 0:
                start = max(0, at - _STEP)
                file.seek(start)
                if (newline := file.read(at - start).rfind(b"\n")) >= 0:
                    at = start + newline + 1
                    break
                at = start
            if at < end:
                file.truncate(at)

    def add(self, line: Mapping[str, Any]) -> None:
        self._write(json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def positions(self) -> dict[str, int]:
        """Return how far each source had been read when its last line was added, so that this run can continue
        there."""
        found: dict[str, int] = {}
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and (place := _POSITION.match(line)):
                    found[place.group(1).decode()] = int(place.group(2))
        return found

    def _write(self, data: bytes) -> None:
        # Opened each time: the file may be on a file system that a forked machine mounts again.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


class Tail:
    """A file of JSON lines that another program adds to."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the new complete lines. `offset` is after each line when it is yielded."""
        if not self.path.exists() or self.path.stat().st_size <= self.offset:
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                if line.strip():
                    yield _object(line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"type": "unreadable", "line": line.decode("utf-8", "replace")}


def run(argv: Sequence[str], env: Mapping[str, str], feed: Feed, collect: Callable[[], None]) -> int:
    """Run a program in this terminal and call `collect` until it has ended. Return its exit code."""
    feed.add({"seat": "started"})
    child = subprocess.Popen(argv, env={**os.environ, **env})
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # terminal keys, for the program only
    shutdown = _Shutdown(child.pid)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, shutdown.begin)
    while (code := _exit_code(child.pid)) is None:
        collect()
        shutdown.kill_late()
        time.sleep(TICK)
    for _ in range(LAST_POLLS):
        collect()
        time.sleep(TICK)
    feed.add({"seat": "ended", "code": code})
    return code


class _Shutdown:
    """The end of the program after its terminal was closed, or this process was told to exit.

    Some programs ignore that their terminal is closed, and some then hang."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._started: float | None = None

    def begin(self, number: int, frame: object) -> None:
        self._started = self._started or time.monotonic()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)

    def kill_late(self) -> None:
        """Kill the remaining processes after GRACE. The child is killed last: a shell may have to restore files."""
        waited = time.monotonic() - self._started if self._started else 0.0
        if waited > GRACE:
            for pid in _group() - {os.getpid()} - ({self._child} if waited < 2 * GRACE else set()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _group() -> set[int]:
    """Return the processes of this process group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == os.getpgrp():
                found.add(int(stat.parent.name))
    return found


def _exit_code(pid: int) -> int | None:
    """Return the exit code of a child that has ended. A child that stopped itself (Ctrl-Z) is continued: it has no
    shell."""
    ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if not ended:
        return None
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGCONT)
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def runtime(state: str) -> Path:
    """Return a private directory of this machine for temporary files of the run with this state directory."""
    place = Path("/tmp") / f"hiveyard-seat-{os.getuid()}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"  # noqa: S108
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise Refused(f"{place} belongs to another user")
    return place


@contextmanager
def file_lock(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Delivery(NamedTuple):
    """A prompt that must be sent. `feed_tail` is the feed since the first attempt began.

    `retried`: an earlier attempt did not finish, so the program may have the prompt already."""

    feed_tail: Tail
    retried: bool


@contextmanager
def delivery(place: Path, feed: Feed, prompt: str, text: str) -> Iterator[Delivery | None]:
    """Lock the delivery of a prompt; yield None if it was delivered before.

    An earlier attempt may have been interrupted by a killed daemon or a snapshot; it is then repeated. A forked machine
    has another name, so it delivers its own prompts."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    mark = f"{socket.gethostname()} {prompt} {digest}"
    delivered, started = place / "told", place / "telling"
    with file_lock(place / "say"):
        if delivered.exists() and delivered.read_text() == mark:
            yield None
            return
        size, _, former = (started.read_text() if started.exists() else "").partition(" ")
        if former != mark:
            size = str(feed.size())
            fresh = place / "telling.new"
            fresh.write_text(f"{size} {mark}")
            fresh.replace(started)
        yield Delivery(Tail(feed.path, int(size)), former == mark)
        delivered.write_text(mark)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition is true, for at most `seconds`. Return whether it is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(TICK)
    return True


def tmux(*words: str) -> bool:
    """Run a tmux command of this user. Return whether it succeeded."""
    done = subprocess.run(["tmux", *words], capture_output=True, check=False)
    return done.returncode == 0


def main(verbs: Mapping[str, Callable[[dict[str, Any]], int]]) -> NoReturn:
    """Run the verb in argv with its JSON settings."""
    verb, settings = sys.argv[1], json.loads(sys.argv[2])
    try:
        sys.exit(verbs[verb](settings))
    except (Refused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
