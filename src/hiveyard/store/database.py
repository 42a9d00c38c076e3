"""The store: write, read and follow, on SQLite or PostgreSQL. It must not know the content of what is written.

async with open_store(path, clock=clock) as store:
    event = await store.write(lambda conn: record(conn, session, body, at=clock.now()))
    task = await store.read(lambda conn: views.task(conn, session))
    async for event in store.follow(after=0, session=session): ...
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
import sqlalchemy
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.core.events import AnyBody, Event
from hiveyard.kit.clock import Clock
from hiveyard.store import journal
from hiveyard.store.outbox import Outbox
from hiveyard.store.shrinking import Shrinker, Space
from hiveyard.store.sqlite import SqliteBackend
from hiveyard.store.tail import Tail
from hiveyard.store.writer import AnyJob, Commit, Writer

T = TypeVar("T")


class Backend(Protocol):
    """A database. `failure` turns an error of its driver into one of core/errors."""

    async def open(self) -> None: ...

    async def commit(self, jobs: Sequence[AnyJob]) -> Outbox: ...

    async def read(self, fn: Callable[[Connection], T]) -> T: ...

    async def aclose(self) -> None: ...

    def failure(self, error: Exception) -> HiveyardError: ...


class Store:
    """One open journal. Use it from the event loop that opened it."""

    def __init__(self, backend: Backend, writer: Writer, tail: Tail, clock: Clock, shrinker: Shrinker | None) -> None:
        self._backend = backend
        self._shrinker = shrinker
        self._writer = writer
        self._tail = tail
        self._clock = clock

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a transaction, and return its value once the transaction is durable.

        `fn` runs in another thread, after all earlier writes and never at the same time as another one. If it raises,
        its changes are undone and the error is raised here; other writes are not affected. It runs again if the disk
        was full and has space now. It must not commit, roll back, or wait for anything but the database.
        Raises StoreUnusable if the commit failed. Cancelling the caller does not cancel the write: it is done
        completely, or it was not started.
        """
        return await self._writer.submit(fn)

    async def append(self, session: str, *bodies: AnyBody, turn: int | None = None) -> list[Event]:
        """Record events in one write, at the clock's time. Raises as `journal.record` does."""
        entries = [(body, None) for body in bodies]
        at = self._clock.now()
        return await self.write(lambda conn: journal.record_many(conn, session, entries, at=at, turn=turn))

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on a read-only connection with one consistent state, which has all acknowledged writes.

        Never waits for a write. Raises what `fn` raises, and StoreUnusable."""
        self._writer.check_open()
        return await self._backend.read(fn)

    async def follow(self, *, after: int = 0, session: str | None = None) -> AsyncGenerator[Event, None]:
        """Yield all events (of a session) with a number greater than `after`, in order and each exactly once.

        First come the stored events, then each new one when it is committed. Ends only when the session is forgotten:
        use `contextlib.aclosing`."""
        async with aclosing(self.follow_pages(after=after, session=session)) as pages:
            async for page in pages:
                for event in page:
                    yield event

    async def follow_pages(self, *, after: int = 0, session: str | None = None) -> AsyncGenerator[list[Event], None]:
        """As `follow`, but yield all available events as one list: never empty, at most `journal.PAGE_EVENTS`."""
        position = after
        while True:
            piece = self._tail.after(position, session, journal.PAGE_EVENTS)
            if piece is None:
                page, position = await self._stored_page(position, session)
            elif piece.events or piece.position > position:
                page, position = piece
            elif self._tail.forgot(session):
                return
            else:
                await self._tail.growth(session).wait()
                continue
            if page:
                await anyio.lowlevel.checkpoint()
                yield page

    async def space(self) -> Space | None:
        """Return the disk space that the journal takes and could free; None when another server has it."""
        return await self._backend.space() if isinstance(self._backend, SqliteBackend) else None

    async def shrink(self) -> None:
        """Return what removed rows have left over in an SQLite file to the file system.

        For a file of an older version, writes wait until all rows are written anew. Raises StoreError, StoreUnusable.
        """
        if self._shrinker is not None and isinstance(self._backend, SqliteBackend):
            await self._backend.vacuum()
            await self._shrinker.shrink()

    async def _stored_page(self, position: int, session: str | None) -> tuple[list[Event], int]:
        """Return the next page from the database, and the position after it."""
        floor = self._tail.floor
        page = await self.read(lambda conn: journal.events(conn, after=position, session=session))
        if page:
            return page, page[-1].seq
        # Everything up to the floor was committed before this read, so nothing is left before it.
        return [], max(position, floor)


@asynccontextmanager
async def open_store(
    where: Path | str, *, clock: Clock, tail_events: int = 8192, ballast: int = 0
) -> AsyncIterator[Store]:
    """Open the journal in the SQLite file `where` (a Path; created if absent), or at a database URL (a str:
    `postgresql://...`, `sqlite:///...`). All submitted writes are done before the block ends.

    `tail_events` is the number of latest events kept in memory for followers (at most 32 MiB of them). `ballast` is
    the number of bytes that a file beside an SQLite file reserves, so that writes still work on a full disk.
    Raises StoreUnusable for a database that is locked, damaged, another program's, or cannot be reached; StoreTooNew
    for one of a newer version; BadInput for a URL of another kind.
    """
    failure: Exception | None = None
    async with _opened(_backend(where, ballast)) as backend:
        tail = Tail(await backend.read(journal.last_seq), max_events=tail_events)
        shrinker = Shrinker(backend.release) if isinstance(backend, SqliteBackend) else None
        writer = Writer(_committing(backend, shrinker), tail, backend.failure)
        shrinking = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(writer.run, name="journal writer")
            if shrinker is not None:
                group.start_soon(_run_within, shrinking, shrinker, name="journal shrinker")
            try:
                yield Store(backend, writer, tail, clock, shrinker)
            except Exception as error:  # noqa: BLE001 (raised outside the task group, which would wrap it)
                failure = error
            finally:
                writer.close()
                shrinking.cancel()
    if failure is not None:
        raise failure


def _committing(backend: Backend, shrinker: Shrinker | None) -> Commit:
    """Return the backend's `commit`, after which the shrinker frees what a removed session had."""

    async def commit(jobs: Sequence[AnyJob]) -> Outbox:
        outbox = await backend.commit(jobs)
        if shrinker is not None and outbox.forgotten:
            shrinker.wake()
        return outbox

    return commit


async def _run_within(scope: anyio.CancelScope, shrinker: Shrinker) -> None:
    with scope:
        shrinker.wake()  # an earlier daemon may not have finished
        await shrinker.run()


@asynccontextmanager
async def _opened(backend: Backend) -> AsyncIterator[Backend]:
    await backend.open()
    try:
        yield backend
    finally:
        await backend.aclose()


def _backend(where: Path | str, ballast: int) -> Backend:
    if isinstance(where, Path):
        return SqliteBackend(where, ballast=ballast)
    try:
        url = sqlalchemy.make_url(where)
    except sqlalchemy.exc.ArgumentError:
        raise BadInput("the address of the journal is not a database URL", hint="postgresql://user@host/name") from None
    if url.get_backend_name() == "sqlite" and url.database:
        return SqliteBackend(Path(url.database), ballast=ballast)
    if url.get_backend_name() == "postgresql":
        try:
            from hiveyard.store.postgres import PostgresBackend
        except ModuleNotFoundError as error:
            raise BadInput(f"PostgreSQL needs {error.name}", hint=f"pip install {error.name}") from error
        return PostgresBackend(url)
    raise BadInput(f"the journal cannot be stored in {url.get_backend_name()}", hint="postgresql://user@host/name")
