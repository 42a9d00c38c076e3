"""Writes a tape, one whole line for each answer, on disk before the next one begins."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import msgspec

from hiveyard.core.errors import BadTape
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.tape import VERSION, Ask, Entry, Header, ask_of, scan
from hiveyard.kit.files import open_regular

_BLOCK = 64 << 10
LARGEST_ANSWER = 64 << 20
"""Bytes of one answer that are recorded; a larger one is left out."""


class Recorder:
    """Adds entries to the tape at `path`, which is made when absent and continued when it is there. Several may record
    on one tape, of this process or others.

    A line that a crash tore off is cut away. Raises BadTape when something else stands at `path`, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)
        self._lock = anyio.Lock()
        self._reading = anyio.CapacityLimiter(1)

    async def ask_of(self, asked: ModelRequest, mask: Callable[[str], str]) -> Ask:
        """See `tape.ask_of`; in a thread, for it may take a second."""
        return await anyio.to_thread.run_sync(ask_of, asked, mask, limiter=self._reading)

    async def add(self, entry: Entry) -> None:
        """Write an entry; it is on disk when this returns. Raises OSError, after which the tape ends where it was."""
        line = msgspec.json.encode(entry) + b"\n"
        async with self._lock:
            await anyio.to_thread.run_sync(self._append, line)

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        with _alone(self._file):
            end = self._file.truncate(_whole(self._file))
            self._file.seek(end)
            try:
                _write(self._file, line)
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise


def check(path: Path) -> None:
    """Raises BadTape where nothing could be recorded. Changes nothing, for somebody may be recording there."""
    try:
        with os.fdopen(open_regular(path, os.O_RDWR), "r+b") as file:
            if file.read(1):
                file.seek(0)
                scan(file, path)
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BadTape(f"the tape {path} cannot be written: there is no directory to write it to") from None
    except OSError as error:
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error


def _opened(path: Path) -> IO[bytes]:
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error
    file = os.fdopen(fd, "r+b", buffering=0)
    try:
        with _alone(file):
            _begin(file, path)
    except OSError as error:
        file.close()
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error
    except BadTape:
        file.close()
        raise
    return file


@contextmanager
def _alone(file: IO[bytes]) -> Iterator[None]:
    """Nobody else writes to the file for as long as the block lasts. Waits; they write a line each."""
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _whole(file: IO[bytes]) -> int:
    """Where the last whole line ends: another process may have been killed while it wrote the one after it."""
    at = file.seek(0, os.SEEK_END)
    while at:
        begin = max(0, at - _BLOCK)
        file.seek(begin)
        newline = file.read(at - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        at = begin
    return 0


def _write(file: IO[bytes], data: bytes) -> None:
    """All of it: an unbuffered file may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _begin(file: IO[bytes], path: Path) -> None:
    if os.fstat(file.fileno()).st_size == 0:
        header = Header(tape=VERSION, made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        _write(file, msgspec.json.encode(header) + b"\n")
        return
    with path.open("rb") as reader:
        _, end = scan(reader, path)
    file.truncate(end)
