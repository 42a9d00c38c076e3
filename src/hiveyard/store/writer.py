"""Group writes: all writes that wait at the same moment share one transaction and one commit.

While one group is committed, the next one forms. So a single writer waits for one sync of the disk, and many writers
share one. Each write has its own savepoint. The module must not know which database it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import anyio
import anyio.abc
import anyio.lowlevel
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from hiveyard.core.errors import HiveyardError, StoreUnusable
from hiveyard.store.outbox import Outbox, attach
from hiveyard.store.tail import Tail

T = TypeVar("T")
GROUP_LIMIT = 512


class Job(Generic[T]):
    """One write: its function, and its value or error."""

    __slots__ = ("done", "error", "fn", "value")

    def __init__(self, fn: Callable[[Connection], T]) -> None:
        self.fn = fn
        self.done = anyio.Event()
        self.value: T | None = None
        self.error: Exception | None = None

    def reset(self) -> None:
        """Clear the value and error before another attempt."""
        self.value = self.error = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


AnyJob = Job[Any]


class Commit(Protocol):
    """Run a group in one transaction, set each job's value or error, and return what was appended.

    Raises if nothing of the group was stored, or if that is unknown."""

    def __call__(self, jobs: Sequence[AnyJob]) -> Awaitable[Outbox]: ...


def _never(_: Exception) -> bool:
    return False


def commit_group(
    conn: Connection,
    jobs: Sequence[AnyJob],
    savepoint: Callable[[Connection, str], object],
    fatal: Callable[[Exception], bool] = _never,
) -> Outbox:
    """Run the jobs in one transaction. If a job raises, only that job is undone. An error of the database or of the
    commit, or one that is `fatal`, undoes the whole group and is raised."""
    outbox = attach(conn)
    with conn.begin():
        for job in jobs:
            _run(conn, job, outbox, savepoint, fatal)
    return outbox


def _run(
    conn: Connection,
    job: AnyJob,
    outbox: Outbox,
    savepoint: Callable[[Connection, str], object],
    fatal: Callable[[Exception], bool],
) -> None:
    mark = outbox.mark()
    savepoint(conn, "SAVEPOINT job")
    try:
        job.value = job.fn(conn)
    except Exception as error:
        if fatal(error):
            raise
        # It concerns only the caller of this write.
        job.error = error
        outbox.back_to(mark)
        # Raises if the database rolled back the whole transaction, as SQLite does when the disk is full.
        savepoint(conn, "ROLLBACK TO SAVEPOINT job")
    savepoint(conn, "RELEASE SAVEPOINT job")


class Writer:
    """The queue of writes for the one connection that writes. It belongs to the event loop's thread."""

    def __init__(self, commit: Commit, tail: Tail, failure: Callable[[Exception], HiveyardError]) -> None:
        self._commit = commit
        self._tail = tail
        self._failure = failure
        self._jobs: deque[AnyJob] = deque()
        self._wake = anyio.Event()
        self._closed = False

    async def submit(self, fn: Callable[[Connection], T]) -> T:
        await anyio.lowlevel.checkpoint_if_cancelled()
        self.check_open()
        job = Job(fn)
        self._jobs.append(job)
        self._wake.set()
        # Cancelling the caller here does not cancel its write, which is committed like the others.
        await job.done.wait()
        return job.result()

    def check_open(self) -> None:
        if self._closed:
            raise StoreUnusable("the journal is closed")

    def close(self) -> None:
        """Refuse further writes. Those that wait are still written before `run` returns."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        # Shielded: each accepted write gets an answer, and no commit is interrupted.
        with anyio.CancelScope(shield=True):
            try:
                while self._jobs or not self._closed:
                    if not self._jobs:
                        self._wake = anyio.Event()
                        await self._wake.wait()
                        continue
                    await self._write([self._jobs.popleft() for _ in range(min(len(self._jobs), GROUP_LIMIT))])
            finally:
                self._closed = True
                self._answer(self._jobs, StoreUnusable("the journal's writer has died"))

    async def _write(self, jobs: list[AnyJob]) -> None:
        fault: Exception | None = StoreUnusable("the journal's writer was interrupted")
        try:
            outbox = await self._commit(jobs)
            self._tail.publish(outbox.appended, outbox.forgotten)
            fault = None
        except Exception as error:  # noqa: BLE001 (the top of the writer: each caller gets the error)
            fault = error
        finally:
            self._answer(jobs, fault)

    def _answer(self, jobs: Iterable[AnyJob], of_group: Exception | None) -> None:
        for job in jobs:
            if of_group is not None or job.error is not None:
                job.error = self._error_of(job.error, of_group)
            job.done.set()

    def _error_of(self, own: Exception | None, of_group: Exception | None) -> Exception:
        """Return the error for one caller: its own if there is one, else the group's. Translate a driver's error."""
        cause = own or of_group
        assert cause is not None
        if cause is own and not isinstance(own, SQLAlchemyError):
            return own
        error = cause if isinstance(cause, HiveyardError) else self._failure(cause)
        if error is not cause:
            error.__cause__ = cause
        return error
