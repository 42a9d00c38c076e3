"""The journal in PostgreSQL: asyncpg, and the functions of the journal called through `run_sync`.

One connection writes, and holds an advisory lock on the database while it is open. The lock makes sequence numbers
appear in order: with two writers, number n+1 could be committed and read before n, and a reader past n would never see
it. A row with the counter would also work, but costs a row lock, an update and a dead row for every event; and it would
hide a second daemon, which the lock reports at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hiveyard.core.errors import HiveyardError, StoreUnusable
from hiveyard.store.failures import postgres_failure
from hiveyard.store.migrate import migrate
from hiveyard.store.outbox import Outbox
from hiveyard.store.writer import AnyJob, commit_group

T = TypeVar("T")
READERS = 4
_LOCK = 0x48495645  # "HIVE"; the lock is per database
_DRIVER_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)


class PostgresBackend:
    """Connections to one database."""

    def __init__(self, url: URL) -> None:
        self._shown = url.render_as_string(hide_password=True)
        self._engine: AsyncEngine = create_async_engine(
            url.set(drivername="postgresql+asyncpg"), pool_size=READERS + 1, max_overflow=0, pool_pre_ping=True
        )
        self._readers = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._reading = anyio.CapacityLimiter(READERS)
        self._conn: AsyncConnection | None = None

    async def open(self) -> None:
        """Take the lock and migrate the tables to this version. Raises StoreUnusable, StoreTooNew."""
        try:
            async with self._translated():
                conn = await self._writer()
                await conn.run_sync(migrate, self._shown)
        except BaseException:
            await self.aclose()
            raise

    async def commit(self, jobs: Sequence[AnyJob]) -> Outbox:
        try:
            conn = await self._writer()
            return await conn.run_sync(commit_group, jobs, _savepoint)
        except _DRIVER_ERRORS:
            await self._drop_connection()
            raise

    async def read(self, fn: Callable[[Connection], T]) -> T:
        async with self._reading, self._translated(), self._readers.connect() as conn, conn.begin():
            return await conn.run_sync(fn)

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._drop_connection()
            await self._engine.dispose()

    def failure(self, error: Exception) -> HiveyardError:
        return postgres_failure(self._shown, error)

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except _DRIVER_ERRORS as error:
            raise self.failure(error) from error

    async def _writer(self) -> AsyncConnection:
        """Return the connection that writes and holds the lock. Open a new one if it was lost."""
        if self._conn is None:
            conn = await self._engine.connect()
            try:
                await self._lock(conn)
            except BaseException:
                await conn.close()
                raise
            self._conn = conn
        return self._conn

    async def _lock(self, conn: AsyncConnection) -> None:
        async with conn.begin():
            # Commits wait for the disk, even if the server's own setting differs.
            await conn.execute(text("SET SESSION synchronous_commit = on"))
            if not await conn.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
                raise StoreUnusable(f"the journal at {self._shown}: another daemon writes to it", hint="hv stop-daemon")

    async def _drop_connection(self) -> None:
        """Close the connection. In the pool it would keep the lock."""
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.invalidate()
            await conn.close()


def _savepoint(conn: Connection, statement: str) -> None:
    conn.exec_driver_sql(statement)
