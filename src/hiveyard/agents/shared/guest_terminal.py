"""Run a program in a terminal in the guest, and record what happens in a feed."""

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
"""Seconds between two looks at what has happened."""

LAST_LOOKS = 12
"""Looks at what has happened after the program has ended."""
LATE = 5.0
"""Seconds that a prompt may take to be heard which somebody told who is gone."""
GRACE = 4.0
"""Seconds that a program has to end by itself when its terminal is gone."""

_STEP = 1 << 16
_PLACE = re.compile(rb'\{"at":\["([^"\\]+)",(\d+)\]')


class Refused(Exception):
    """The program did not take what it was told; the message says why."""


class Feed:
    """The file of JSON lines that Hiveyard reads. Each line is added by one write, so a reader finds whole ones."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def begin(self) -> None:
        """Make it ready for this run: a line that a dying machine left torn, which nobody has read, goes away."""
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

    def places(self) -> dict[str, int]:
        """How far each source was read when its last line was added: what a run after this one need not add again."""
        found: dict[str, int] = {}
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") and (place := _PLACE.match(line)):
                    found[place.group(1).decode()] = int(place.group(2))
        return found

    def _write(self, data: bytes) -> None:
        # Opened anew each time: the file may lie on a file system that a forked machine mounts again.
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
        """The whole lines that are new; `offset` is behind each when it is given."""
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
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {"type": "unreadable", "line": line.decode("utf-8", "replace")}


def run(argv: Sequence[str], env: Mapping[str, str], feed: Feed, listen: Callable[[], None]) -> int:
    """Run a program on this terminal and listen until it has ended. Returns its exit code."""
    feed.add({"seat": "started"})
    child = subprocess.Popen(argv, env={**os.environ, **env})
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # keys of the terminal: they are the program's
    end = _End(child.pid)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, end.begin)
    while (code := _ended(child.pid)) is None:
        listen()
        end.press()
        time.sleep(TICK)
    for _ in range(LAST_LOOKS):
        listen()
        time.sleep(TICK)
    feed.add({"seat": "ended", "code": code})
    return code


class _End:
    """The end of the program, once its terminal is gone or somebody ends this process. Some programs do not mind that
    their terminal is gone, and some then neither work nor end."""

    def __init__(self, child: int) -> None:
        self._child = child
        self._begun: float | None = None

    def begin(self, number: int, frame: object) -> None:
        self._begun = self._begun or time.monotonic()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)

    def press(self) -> None:
        """Kill what is left after a while. The child comes last: a shell may have to put things back."""
        waited = time.monotonic() - self._begun if self._begun else 0.0
        if waited > GRACE:
            for pid in _group() - {os.getpid()} - ({self._child} if waited < 2 * GRACE else set()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _group() -> set[int]:
    """The processes of this process group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[2]) == os.getpgrp():
                found.add(int(stat.parent.name))
    return found


def _ended(pid: int) -> int | None:
    """The exit code of a child that has ended. One that stopped itself (Ctrl-Z) goes on: there is no shell above it."""
    found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if not found:
        return None
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGCONT)
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def runtime(state: str) -> Path:
    """A directory of this machine, closed to other users, for what need not outlive the run at this state directory."""
    place = Path("/tmp") / f"hiveyard-seat-{os.getuid()}-{hashlib.sha256(state.encode()).hexdigest()[:12]}"  # noqa: S108
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise Refused(f"{place} belongs to somebody else")
    return place


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One at a time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Telling(NamedTuple):
    """A prompt that is still to be told. `heard` is the feed from where it stood before anybody began with that;
    `again`: somebody did, and did not come to the end, so the program may have it."""

    heard: Tail
    again: bool


@contextmanager
def once(place: Path, feed: Feed, prompt: str, text: str) -> Iterator[Telling | None]:
    """Tell a prompt alone; None when that is done. Who began with it may have been left behind by a daemon that was
    killed, or may have died when the machine was left to be frozen: then it is told again. A forked machine has
    another name, and its own."""
    said = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    mark = f"{socket.gethostname()} {prompt} {said}"
    told, telling = place / "told", place / "telling"
    with alone(place / "say"):
        if told.exists() and told.read_text() == mark:
            yield None
            return
        size, _, begun = (telling.read_text() if telling.exists() else "").partition(" ")
        if begun != mark:
            size = str(feed.size())
            fresh = place / "telling.new"
            fresh.write_text(f"{size} {mark}")
            fresh.replace(telling)
        yield Telling(Tail(feed.path, int(size)), begun == mark)
        told.write_text(mark)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(TICK)
    return True


def tmux(*words: str) -> bool:
    """Whether a command to the tmux server of this user succeeded."""
    done = subprocess.run(["tmux", *words], capture_output=True, check=False)
    return done.returncode == 0


def main(verbs: Mapping[str, Callable[[dict[str, Any]], int]]) -> NoReturn:
    """Run the verb that argv names, with its settings in JSON."""
    verb, settings = sys.argv[1], json.loads(sys.argv[2])
    try:
        sys.exit(verbs[verb](settings))
    except (Refused, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
