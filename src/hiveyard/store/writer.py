"""Writes in groups: all that wait at the same moment share one transaction and one commit.

While a group is being committed the next one gathers by itself, so that one lone writer waits for one sync of the
disk and many writers share it. Each write has a savepoint of its own. The module must not know which database it is.
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
    """One write: what to do, and what came of it."""

    __slots__ = ("done", "error", "fn", "value")

    def __init__(self, fn: Callable[[Connection], T]) -> None:
        self.fn = fn
        self.done = anyio.Event()
        self.value: T | None = None
        self.error: Exception | None = None

    def again(self) -> None:
        """Nothing has come of it yet."""
        self.value = self.error = None

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


AnyJob = Job[Any]


class Commit(Protocol):
    """Runs a group in one transaction and returns what it appended; job results are filled in. Raises when nothing
    of the group was stored, or when nobody can tell."""

    def __call__(self, jobs: Sequence[AnyJob]) -> Awaitable[Outbox]: ...


def _never(_: Exception) -> bool:
    return False


def commit_group(
    conn: Connection,
    jobs: Sequence[AnyJob],
    savepoint: Callable[[Connection, str], object],
    fatal: Callable[[Exception], bool] = _never,
) -> Outbox:
    """Run the jobs in one transaction. A job that raises is undone alone; an error of the database itself, of the
    commit, or one that is `fatal`, undoes all and is raised."""
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
        # Whatever it is belongs to the caller of this one write.
        job.error = error
        outbox.back_to(mark)
        # Raises when the database gave up the whole transaction, as SQLite does when its disk is full.
        savepoint(conn, "ROLLBACK TO SAVEPOINT job")
    savepoint(conn, "RELEASE SAVEPOINT job")


class Writer:
    """The queue in front of the one connection that writes. Belongs to the event loop's thread."""

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
        # A caller that is cancelled here does not take its write back: it is committed, whole, like the others.
        await job.done.wait()
        return job.result()

    def check_open(self) -> None:
        if self._closed:
            raise StoreUnusable("the journal is closed")

    def close(self) -> None:
        """Take no more; what waits is still written before `run` returns."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        # Shielded: whoever was accepted gets an answer, and a commit is never left half way.
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
                job.error = self._told(job.error, of_group)
            job.done.set()

    def _told(self, own: Exception | None, of_group: Exception | None) -> Exception:
        """The error for one caller: its own when it made one, else the group's; a driver's in our words."""
        cause = own or of_group
        assert cause is not None
        if cause is own and not isinstance(own, SQLAlchemyError):
            return own
        told = cause if isinstance(cause, HiveyardError) else self._failure(cause)
        if told is not cause:
            told.__cause__ = cause
        return told
