"""Mirror the events of each session as JSON lines in a file, for users and their tools.

The files are copies, written after the commit. They are made equal to the journal again at start, after an error, and
when a file does not have its last known length. A guest may reach a session's directory, so nothing in it is trusted:
no symlink is followed there, and only regular files are written. The directories above it belong to the host.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import structlog

from hiveyard.core.errors import StoreUnusable
from hiveyard.core.events import Event
from hiveyard.store import journal
from hiveyard.store.database import Store

PathOf = Callable[[str], "Path | None"]
LONGEST_LINE = 64 << 20
_AGAIN = 1.0
"""Seconds until a journal that could not be read is read again."""
_log = structlog.get_logger(__name__)


async def mirror(
    store: Store,
    path_of: PathOf,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a file of JSON lines per session equal to the journal. Never ends; started once all files are complete.

    `path_of` returns the file of a session, or None if the session has no directory. Directories are not created. A
    file that cannot be written is logged, and completed at the next event of its session.
    """
    files = EventFiles(store, path_of)
    head = await store.read(journal.last_seq)
    for session in await store.read(journal.sessions_with_events):
        await files.catch_up(session, head)
    task_status.started()
    while True:
        try:
            async with aclosing(store.follow_pages(after=head)) as pages:
                async for page in pages:
                    await files.add(page)
                    head = page[-1].seq
            return
        except StoreUnusable as error:
            _log.warning("the event files wait for the journal", error=error.message)
            await anyio.sleep(_AGAIN)


class EventFiles:
    """The event files, with the last known length of each."""

    def __init__(self, store: Store, path_of: PathOf) -> None:
        self._store = store
        self._path_of = path_of
        self._sizes: dict[str, int] = {}
        self._failing: set[str] = set()

    async def add(self, page: Sequence[Event]) -> None:
        """Append events, each to the file of its session."""
        behind = await anyio.to_thread.run_sync(self._append_all, self._by_file(page))
        for session in behind:
            await self.catch_up(session, page[-1].seq)

    async def catch_up(self, session: str, upto: int) -> None:
        """Make a file equal to the journal up to a sequence number: cut an incomplete end, append missing events."""
        path = self._path_of(session)
        if path is None:
            self._sizes.pop(session, None)
            return
        try:
            seq = await self._cut_to_journal(session, path)
            while page := await self._stored(session, seq, upto):
                self._sizes[session] = await anyio.to_thread.run_sync(_append, path, [line for _, line in page])
                seq = page[-1][0]
        except FileNotFoundError:
            self._sizes.pop(session, None)  # its directory was removed, or is not made yet
        except (OSError, StoreUnusable) as error:
            self._sizes.pop(session, None)
            self._warn_once(session, path, error)
        else:
            self._failing.discard(session)

    def _warn_once(self, session: str, path: Path, error: Exception) -> None:
        """Log a failure once, not at each of the events that follow."""
        if session not in self._failing:
            self._failing.add(session)
            _log.warning("the event file is behind the journal", session=session, path=str(path), error=str(error))

    async def _cut_to_journal(self, session: str, path: Path) -> int:
        """Cut the file after its last event that is also in the journal; return that event's number, or 0."""
        end = await anyio.to_thread.run_sync(_last_line, path, session)
        known = end.seq and await self._store.read(lambda conn: journal.has(conn, session, end.seq))
        kept = end if known else _End(0, 0)
        await anyio.to_thread.run_sync(_cut, path, kept.size)
        self._sizes[session] = kept.size
        return kept.seq

    async def _stored(self, session: str, after: int, upto: int) -> list[tuple[int, bytes]]:
        return await self._store.read(lambda conn: journal.lines(conn, session, after=after, upto=upto))

    def _by_file(self, page: Sequence[Event]) -> Mapping[str, tuple[Path, list[Event]]]:
        by_session: dict[str, list[Event]] = defaultdict(list)
        for event in page:
            by_session[event.session].append(event)
        paths = {session: self._path_of(session) for session in by_session if session}
        return {session: (path, by_session[session]) for session, path in paths.items() if path is not None}

    def _append_all(self, by_file: Mapping[str, tuple[Path, list[Event]]]) -> list[str]:
        """Append in a worker thread; return the sessions whose files changed or failed."""
        return [
            session
            for session, (path, events) in by_file.items()
            if not self._append_to(session, path, map(journal.event_line, events))
        ]

    def _append_to(self, session: str, path: Path, lines: Iterable[bytes]) -> bool:
        size = self._sizes.get(session)
        if size is None:
            return False
        try:
            self._sizes[session] = _append(path, lines, expected=size)
        except OSError:
            return False
        return True


class _End(NamedTuple):
    """The last complete event of a file: its number, and the size of the file up to its end."""

    seq: int
    size: int


class _Start(msgspec.Struct):
    seq: int
    session: str


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PermissionError(errno.EPERM, "not a regular file", str(path))
        yield fd
    finally:
        os.close(fd)


def _append(path: Path, lines: Iterable[bytes], *, expected: int | None = None) -> int:
    """Append lines and return the new size. Raises OSError, also if the size before is not the expected one."""
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        if expected is not None and size != expected:
            raise OSError(errno.EIO, f"{size} bytes long, not {expected}", str(path))
        data = memoryview(b"".join(lines))
        size += len(data)
        while data:
            data = data[os.write(fd, data) :]
        return size


def _cut(path: Path, size: int) -> None:
    with _opened(path) as fd:
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)


def _last_line(path: Path, session: str) -> _End:
    """Find the last complete line if it is an event of this session; else return the start of the file."""
    with _opened(path) as fd:
        size = os.fstat(fd).st_size
        length = 64 << 10
        while True:
            start = max(0, size - length)
            block = os.pread(fd, size - start, start)
            end = block.rfind(b"\n") + 1
            begin = block.rfind(b"\n", 0, end - 1) + 1 if end else 0
            if begin or start == 0 or length > LONGEST_LINE:
                break
            length *= 4
    try:
        line = msgspec.json.decode(block[begin:end], type=_Start)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _End(0, 0)
    return _End(line.seq, start + end) if line.session == session else _End(0, 0)
