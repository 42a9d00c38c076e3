"""Return the free pages of an SQLite file to the file system.

SQLite keeps the pages of deleted rows in the file, for later rows. With auto_vacuum=INCREMENTAL they can be returned a
few at a time, each step a short transaction of its own, so that no write waits for long. A file that was made without
auto_vacuum needs one VACUUM, which writes all its rows anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import StoreError

SPARE = 256  # free pages that stay in the file: a small removal is not worth the work
STEP = 256  # pages of one step; it holds up a write by at most some 50 ms
SMALL_LOG = 8 << 20  # bytes of the write-ahead log that are not worth a checkpoint
SMALL = 64 << 20  # bytes of rows that VACUUM writes anew in about a second, and that fit into memory
_VACUUM_NEEDS = 3  # times the rows: the copy, the write-ahead log, and what others write meanwhile
_RETRIES = 20
_RETRY_SECONDS = 0.5
_log = logging.getLogger(__name__)


class Space(NamedTuple):
    """The bytes that a database takes on disk, and how many of them could be freed."""

    path: Path
    size: int
    free: int


class Left(Enum):
    """The state after a step: nothing is left to free, another step frees more, or a reader uses the log."""

    NOTHING = "nothing"
    MORE = "more"
    BUSY = "busy"


def space(conn: sqlite3.Connection, path: Path) -> Space:
    """Return the size of the database `path` and what can be freed of it."""
    free = max(0, _pragma(conn, "freelist_count") - _spare(conn)) * _pragma(conn, "page_size")
    log = _log_of(path)
    if _size(log) > SMALL_LOG:
        free += _blocks(log)
    files = (path, log, path.with_name(path.name + "-shm"))
    size = sum(_blocks(file) for file in files)
    return Space(path, size, min(free, size))


def release(conn: sqlite3.Connection, path: Path) -> Left:
    """Free a few pages, or truncate the write-ahead log once there are no more. Waits for no reader."""
    if _is_incremental(conn) and _pragma(conn, "freelist_count") > SPARE:
        # Not `execute`: that takes a single step of the statement, which frees a single page.
        conn.executescript(f"PRAGMA incremental_vacuum({STEP})")
        return Left.MORE
    if _size(_log_of(path)) <= SMALL_LOG:
        return Left.NOTHING
    return Left.NOTHING if _truncate_log(conn) else Left.BUSY


def enable(conn: sqlite3.Connection, path: Path) -> None:
    """Turn auto_vacuum on for a file that was made without, if its rows are few and the disk has space for them."""
    if not _is_incremental(conn) and _rows(conn) <= SMALL and _has_room(conn, path):
        # In memory: the directory for temporary files may be on another, smaller disk.
        conn.execute("PRAGMA temp_store=MEMORY")
        try:
            _vacuum(conn)
        finally:
            conn.execute("PRAGMA temp_store=DEFAULT")


def vacuum(conn: sqlite3.Connection, path: Path) -> None:
    """Turn auto_vacuum on whatever the size of the file. Writes wait meanwhile. Raises StoreError."""
    if _is_incremental(conn):
        return
    if not _has_room(conn, path):
        needs = _VACUUM_NEEDS * _rows(conn) >> 20
        raise StoreError(f"{path}: shrinking it needs {needs} MiB of free disk space", hint=f"df -h {path.parent}")
    _vacuum(conn)


class Shrinker:
    """Frees pages in the background, whenever `wake` was called. `release` makes one step."""

    def __init__(self, release: Callable[[], Awaitable[Left]]) -> None:
        self._release = release
        self._wake = anyio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Run until cancelled. A failed step, as on a full disk, is logged; the next `wake` tries again."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self.shrink()
            except Exception as error:  # noqa: BLE001 (the top of a task; the journal works without)
                _log.warning("free pages of the journal could not be returned: %s", error)

    async def shrink(self) -> None:
        """Free all that can be freed. Gives up on the log when readers use it for ten seconds on end."""
        busy = 0
        while busy < _RETRIES and (left := await self._release()) is not Left.NOTHING:
            if left is Left.BUSY:
                busy += 1
                await anyio.sleep(_RETRY_SECONDS)


def _vacuum(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA auto_vacuum=INCREMENTAL")
    conn.execute("VACUUM")
    _truncate_log(conn)


def _truncate_log(conn: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the file and empty it. Return False when a reader still needs it."""
    busy = _pragma(conn, "busy_timeout")
    conn.execute("PRAGMA busy_timeout=0")
    try:
        return bool(conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)
    finally:
        conn.execute(f"PRAGMA busy_timeout={busy}")


def _is_incremental(conn: sqlite3.Connection) -> bool:
    return _pragma(conn, "auto_vacuum") == 2


def _spare(conn: sqlite3.Connection) -> int:
    return SPARE if _is_incremental(conn) else 0


def _rows(conn: sqlite3.Connection) -> int:
    """Return the bytes of all pages that are in use."""
    return (_pragma(conn, "page_count") - _pragma(conn, "freelist_count")) * _pragma(conn, "page_size")


def _has_room(conn: sqlite3.Connection, path: Path) -> bool:
    disk = os.statvfs(path.parent)
    return disk.f_bavail * disk.f_frsize >= _VACUUM_NEEDS * _rows(conn)


def _pragma(conn: sqlite3.Connection, name: str) -> int:
    return int(conn.execute(f"PRAGMA {name}").fetchone()[0])


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _blocks(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0
