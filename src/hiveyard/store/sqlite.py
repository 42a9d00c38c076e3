"""The journal in one SQLite file: WAL, synchronous=FULL, one connection that writes, and a few that only read.

SQLite blocks; this module runs all of its calls in worker threads.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from sqlalchemy import Connection, Engine, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from hiveyard.core.errors import HiveyardError, StoreUnusable
from hiveyard.kit.files import sync_dir
from hiveyard.store import shrinking
from hiveyard.store.ballast import Ballast
from hiveyard.store.failures import sqlite_failure, sqlite_full
from hiveyard.store.migrate import migrate
from hiveyard.store.outbox import Outbox
from hiveyard.store.writer import AnyJob, commit_group

T = TypeVar("T")
READERS = 4
_log = logging.getLogger(__name__)
WAL_KEPT = 64 << 20  # bytes of the write-ahead log that stay on disk after a burst of writes


class SqliteBackend:
    """The connections to one file. `busy` is how many seconds a write waits for a write of another process; `ballast`
    is the number of bytes reserved for when the disk is full."""

    def __init__(self, path: Path, *, busy: float = 5.0, ballast: int = 0) -> None:
        self._path = path
        self._busy = busy
        self._writing = anyio.CapacityLimiter(1)
        self._reading = anyio.CapacityLimiter(READERS)
        self._writer: Engine = create_engine("sqlite://", creator=self._connect_writer, poolclass=StaticPool)
        self._readers: Engine = create_engine(
            "sqlite://", creator=self._connect_reader, poolclass=QueuePool, pool_size=READERS, max_overflow=0
        )
        self._conn: Connection | None = None
        self._ballast = Ballast(path.with_name("ballast"), ballast)
        _set_begin(self._writer, "BEGIN IMMEDIATE")
        _set_begin(self._readers, "BEGIN")

    async def open(self) -> None:
        """Create the file if absent, and migrate its tables to this version. Raises StoreUnusable, StoreTooNew."""
        await anyio.to_thread.run_sync(self._open, limiter=self._writing)

    async def commit(self, jobs: Sequence[AnyJob]) -> Outbox:
        return await anyio.to_thread.run_sync(self._commit, jobs, limiter=self._writing)

    async def read(self, fn: Callable[[Connection], T]) -> T:
        return await anyio.to_thread.run_sync(self._read, fn, limiter=self._reading)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close, limiter=self._writing)

    async def space(self) -> shrinking.Space:
        """Return the bytes that the file takes, and how many of them can be freed."""
        return await anyio.to_thread.run_sync(self._maintain, shrinking.space, limiter=self._writing)

    async def release(self) -> shrinking.Left:
        """Free a few pages of removed rows, between two commits."""
        return await anyio.to_thread.run_sync(self._maintain, shrinking.release, limiter=self._writing)

    async def vacuum(self) -> None:
        """Make `release` possible for a file of an older version. Commits wait meanwhile. Raises StoreError."""
        await anyio.to_thread.run_sync(self._maintain, shrinking.vacuum, limiter=self._writing)

    def failure(self, error: Exception) -> HiveyardError:
        return sqlite_failure(str(self._path), str(self._path.parent), error)

    def _open(self) -> None:
        try:
            self._create_file()
            self._retrying(self._migrate)
            self._enable_shrinking()
            self._ballast.restore()
        except (SQLAlchemyError, sqlite3.Error) as error:
            self._close()
            raise self.failure(error) from error
        except OSError as error:
            hint = f"ls -ld {self._path.parent} {self._path}"
            raise StoreUnusable(f"the journal {self._path}: {error.strerror}", hint=hint) from error
        except HiveyardError:
            self._close()
            raise

    def _migrate(self) -> None:
        with self._writer.connect() as conn:
            migrate(conn, str(self._path))

    def _enable_shrinking(self) -> None:
        try:
            self._maintain(shrinking.enable)
        except (HiveyardError, OSError) as error:
            _log.warning("the journal will not shrink: %s", error)

    def _maintain(self, work: Callable[[sqlite3.Connection, Path], T]) -> T:
        """Do something outside of any transaction, on the connection that writes. Raises StoreUnusable."""
        try:
            if self._conn is None:
                self._conn = self._writer.connect()
            return work(_driver(self._conn), self._path)
        except (SQLAlchemyError, sqlite3.Error) as error:
            self._drop_connection()
            raise self.failure(error) from error

    def _retrying(self, work: Callable[[], T]) -> T:
        """Run a transaction. While the disk is full, release a piece of the ballast and run it again."""
        while True:
            try:
                return work()
            except (SQLAlchemyError, sqlite3.Error) as error:
                self._drop_connection()
                if not (sqlite_full(error) and self._ballast.release()):
                    raise

    def _create_file(self) -> None:
        """Create the file, for its owner only: it holds prompts and outputs. SQLite's other files get the same mode."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            return
        sync_dir(self._path.parent)

    def _connect_writer(self) -> sqlite3.Connection:
        conn = self._connect("rw")
        try:
            # Before anything is in the file; later it has no effect until a VACUUM.
            conn.execute("PRAGMA auto_vacuum=INCREMENTAL")
            mode = conn.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            conn.execute("PRAGMA synchronous=FULL")
            conn.execute(f"PRAGMA journal_size_limit={WAL_KEPT}")
        except sqlite3.Error:
            conn.close()
            raise
        if mode != "wal":
            conn.close()
            where = self._path.parent
            raise StoreUnusable(
                f"the journal {self._path}: its file system has no shared memory", hint=f"df -T {where}"
            )
        return conn

    def _connect_reader(self) -> sqlite3.Connection:
        return self._connect("ro")

    def _connect(self, mode: str) -> sqlite3.Connection:
        # Several worker threads use a connection, but never two at once. Transactions are begun by hand: the sqlite3
        # module begins none for reads, and two reads in a row would see two states.
        return sqlite3.connect(
            f"file:{quote(str(self._path.absolute()))}?mode={mode}",
            uri=True,
            timeout=self._busy,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )

    def _commit(self, jobs: Sequence[AnyJob]) -> Outbox:
        outbox = self._retrying(lambda: self._commit_once(jobs))
        self._ballast.restore()
        return outbox

    def _commit_once(self, jobs: Sequence[AnyJob]) -> Outbox:
        for job in jobs:
            job.reset()
        if self._conn is None:
            self._conn = self._writer.connect()
        return commit_group(self._conn, jobs, _savepoint, sqlite_full)

    def _read(self, fn: Callable[[Connection], T]) -> T:
        try:
            with self._readers.connect() as conn, conn.begin():
                return fn(conn)
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise self.failure(error) from error

    def _drop_connection(self) -> None:
        """Close the connection after a failed commit: its state is unknown, and the next group uses a new one."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.invalidate()
            conn.close()
        self._writer.dispose()

    def _close(self) -> None:
        # The writer last: the last connection to close moves the log into the file and removes it.
        self._readers.dispose()
        if self._conn is not None:
            self._conn.close()
            self._conn = None
        self._writer.dispose()


def _set_begin(engine: Engine, statement: str) -> None:
    def begin(conn: Connection) -> None:
        conn.exec_driver_sql(statement)

    event.listen(engine, "begin", begin)


def _savepoint(conn: Connection, statement: str) -> None:
    # Not through SQLAlchemy, which would spend more on these two statements than SQLite on the rest of the write.
    _driver(conn).execute(statement)


def _driver(conn: Connection) -> sqlite3.Connection:
    driver = conn.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
