"""Record answers on a tape: one line each, which is on disk before the next one begins."""

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
"""The most bytes of one answer that are recorded. A larger answer is left out."""


class Recorder:
    """A writer of entries to the tape at `path`, which is created or continued. Several recorders, also of other
    processes, may write to one tape.

    An incomplete line from a crash is cut. Raises BadTape if `path` is not a tape or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _opened(path)
        self._lock = anyio.Lock()
        self._reading = anyio.CapacityLimiter(1)

    async def ask_of(self, asked: ModelRequest, mask: Callable[[str], str]) -> Ask:
        """Call `tape.ask_of` in a thread, since it may take a second."""
        return await anyio.to_thread.run_sync(ask_of, asked, mask, limiter=self._reading)

    async def add(self, entry: Entry) -> None:
        """Append an entry, which is on disk on return. Raises OSError; the tape then ends where it did before."""
        line = msgspec.json.encode(entry) + b"\n"
        async with self._lock:
            await anyio.to_thread.run_sync(self._append, line)

    def close(self) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        with _locked(self._file):
            end = self._file.truncate(_complete_size(self._file))
            self._file.seek(end)
            try:
                _write(self._file, line)
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(end)
                raise


def check(path: Path) -> None:
    """Raise BadTape if nothing can be recorded at `path`. Changes nothing: another process may record there."""
    try:
        with os.fdopen(open_regular(path, os.O_RDWR), "r+b") as file:
            if file.read(1):
                file.seek(0)
                scan(file, path)
    except FileNotFoundError:
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise BadTape(f"the tape {path} cannot be written: its directory is missing or not writable") from None
    except OSError as error:
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error


def _opened(path: Path) -> IO[bytes]:
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error
    file = os.fdopen(fd, "r+b", buffering=0)
    try:
        with _locked(file):
            _begin(file, path)
    except OSError as error:
        file.close()
        raise BadTape(f"the tape {path} cannot be written: {error.strerror}") from error
    except BadTape:
        file.close()
        raise
    return file


@contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """Lock the file against other recorders until the block ends. Waits: each holds the lock for one line."""
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _complete_size(file: IO[bytes]) -> int:
    """Return the offset after the last complete line: another process may have been killed while it wrote."""
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
    """Write all data: one write to an unbuffered file may take less."""
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
