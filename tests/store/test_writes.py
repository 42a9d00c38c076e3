"""Writes share a commit, and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from sqlalchemy import Connection, text

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove, NotFound, StoreError, StoreUnusable
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store

from .conftest import Where
from .stories import beginning

pytestmark = pytest.mark.anyio


def say(conn: Connection, message: str) -> int:
    return journal.record(conn, "", e.Notice(message=message), at=1.0).seq


async def said(store: Store) -> list[str]:
    events = await store.read(journal.events)
    return [event.body.message for event in events if isinstance(event.body, e.Notice)]


async def test_only_the_write_that_raises_is_undone(store: Store) -> None:
    outcomes: dict[int, object] = {}

    async def write(number: int) -> None:
        def fn(conn: Connection) -> int:
            seq = say(conn, str(number))
            if number % 3 == 0:
                raise IllegalMove(f"no {number}")
            return seq

        try:
            outcomes[number] = await store.write(fn)
        except IllegalMove as error:
            outcomes[number] = error.message

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(write, number)
    assert sorted(await said(store), key=int) == [str(n) for n in range(30) if n % 3]
    assert {n for n, outcome in outcomes.items() if outcome == f"no {n}"} == set(range(0, 30, 3))
    numbers = [outcome for outcome in outcomes.values() if isinstance(outcome, int)]
    assert len(set(numbers)) == 20


async def test_a_failed_statement_is_a_store_error_and_other_writes_are_not_affected(store: Store) -> None:
    failures: list[Exception] = []

    async def bad() -> None:
        try:
            await store.write(lambda conn: conn.execute(text("SELECT * FROM no_such_table")).all())
        except StoreError as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(store.write, lambda conn: say(conn, "before"))
        group.start_soon(bad)
        group.start_soon(store.write, lambda conn: say(conn, "after"))
    assert await said(store) == ["before", "after"]
    assert len(failures) == 1 and "no_such_table" in str(failures[0])


async def test_a_duplicate_row_is_refused(store: Store) -> None:
    await store.append("", e.Notice(message="x"))
    twice = text("INSERT INTO events (seq, at, session, body) VALUES (1, 1.0, '', '{}')")
    with pytest.raises(StoreError, match="refused") as caught:
        await store.write(lambda conn: conn.execute(twice))
    assert not isinstance(caught.value, StoreUnusable)


async def test_writes_happen_in_the_order_of_their_submission(store: Store) -> None:
    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(store.write, lambda conn, number=number: say(conn, str(number)))
    assert await said(store) == [str(number) for number in range(200)]


async def test_acknowledged_writes_are_read(store: Store) -> None:
    async def write_and_read(number: int) -> None:
        for _ in range(10):
            seq = await store.write(lambda conn: say(conn, str(number)))
            assert await store.read(partial(journal.has, session="", seq=seq))

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(write_and_read, number)


async def test_a_reader_sees_one_consistent_state(tmp_path: Path) -> None:
    """Test on SQLite, where a read runs in a thread and can wait."""
    looked, written = anyio.Event(), anyio.Event()

    def look_twice(conn: Connection) -> tuple[int, int]:
        before = journal.last_seq(conn)
        anyio.from_thread.run_sync(looked.set)
        anyio.from_thread.run(written.wait)
        return before, journal.last_seq(conn)

    async with open_store(tmp_path / "journal.db", clock=SystemClock()) as store:

        async def write() -> None:
            await looked.wait()
            await store.append("", e.Notice(message="meanwhile"))
            written.set()

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            assert await store.read(look_twice) == (0, 0)
        assert await store.read(journal.last_seq) == 1


async def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises(StoreError):
        await store.read(lambda conn: say(conn, "no"))
    await store.write(lambda conn: say(conn, "yes"))
    assert await said(store) == ["yes"]


async def test_a_caller_that_is_cancelled_loses_the_answer_and_not_the_write(where: Where) -> None:
    async with open_store(where, clock=SystemClock()) as store, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(store.write, lambda conn, number=number: say(conn, str(number)))
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    async with open_store(where, clock=SystemClock()) as store:
        done = await said(store)
        assert done in ([], [str(number) for number in range(20)])


async def test_a_caller_that_was_cancelled_before_writes_nothing(store: Store) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.write(lambda conn: say(conn, "no"))
    assert await said(store) == []


async def test_closing_completes_waiting_writes_and_refuses_further_ones(where: Where) -> None:
    async with anyio.create_task_group() as group:
        async with open_store(where, clock=SystemClock()) as store:
            for number in range(20):
                group.start_soon(store.write, lambda conn, number=number: say(conn, str(number)))
            await anyio.lowlevel.checkpoint()
        with pytest.raises(StoreUnusable, match="closed"):
            await store.write(lambda conn: say(conn, "late"))
        with pytest.raises(StoreUnusable, match="closed"):
            await store.read(journal.last_seq)
    async with open_store(where, clock=SystemClock()) as store:
        assert await said(store) == [str(number) for number in range(20)]


async def test_an_error_in_the_block_is_raised_unchanged(where: Where) -> None:
    with pytest.raises(NotFound, match="mine"):
        async with open_store(where, clock=SystemClock()):
            raise NotFound("mine")


async def test_an_undone_write_does_not_reach_followers(store: Store) -> None:
    def undone(conn: Connection) -> None:
        say(conn, "undone")
        raise IllegalMove("no")

    with pytest.raises(IllegalMove):
        await store.write(undone)
    await store.append("", e.Notice(message="done"))
    async for event in store.follow():
        assert event.body == e.Notice(message="done")
        break


async def test_the_store_works_after_a_failed_group(store: Store) -> None:
    """A write that breaks the transaction fails its group, and nothing else."""
    await store.append("s1", *beginning())
    with pytest.raises(StoreUnusable):
        await store.write(lambda conn: conn.exec_driver_sql("ROLLBACK"))
    await store.append("s1", e.Notice(message="on"))
    assert await said(store) == ["on"]
