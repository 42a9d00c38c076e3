"""Followers get stored events, then new ones, without gaps or duplicates."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.core.errors import StoreUnusable
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store
from hiveyard.store.outbox import uncollected

from .conftest import Where, fresh_database
from .postgres_server import Server, name_of
from .stories import FAILURE, beginning

pytestmark = pytest.mark.anyio
WRITERS = 50
EACH = 40
PATIENCE = 60  # seconds; a reader would wait for a gap forever


async def take(store: Store, count: int, *, after: int = 0, session: str | None = None) -> list[e.Event]:
    taken: list[e.Event] = []
    with anyio.fail_after(PATIENCE):
        async with aclosing(store.follow(after=after, session=session)) as events:
            async for event in events:
                taken.append(event)
                if len(taken) == count:
                    break
    return taken


async def write_all(store: Store) -> None:
    async def write(session: str) -> None:
        for number in range(EACH):
            await store.append(session, e.AgentText(text=str(number)))

    async with anyio.create_task_group() as group:
        for number in range(WRITERS):
            group.start_soon(write, f"s{number}")


async def begin_all(store: Store) -> None:
    for number in range(WRITERS):
        await store.append(f"s{number}", *beginning())


@pytest.mark.parametrize("tail_events", [8192, 64])
async def test_readers_that_start_at_any_time_get_all_events_once_and_in_order(where: Where, tail_events: int) -> None:
    total = 2 * WRITERS + WRITERS * EACH
    taken: list[list[e.Event]] = []

    async def read(delay_until: int, pause: bool) -> None:
        await take(store, delay_until)
        own: list[e.Event] = []
        taken.append(own)
        async with aclosing(store.follow()) as events:
            async for event in events:
                own.append(event)
                if pause and len(own) % 100 == 0:
                    await anyio.sleep(0.01)
                if len(own) == total:
                    return

    async with open_store(where, clock=SystemClock(), tail_events=tail_events) as store:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for begun, pause in ((1, False), (100, False), (300, True), (700, False), (1500, True)):
                    group.start_soon(read, begun, pause)
                await begin_all(store)
                await write_all(store)
        stored = await store.read(lambda conn: journal.events(conn, limit=2 * total))
    assert len(stored) == total
    assert [event.seq for event in stored] == sorted({event.seq for event in stored})
    assert all(own == stored for own in taken)
    assert len(taken) == 5


async def test_a_reader_of_one_session_gets_that_session_only(store: Store) -> None:
    taken: list[e.Event] = []

    async def read() -> None:
        taken.extend(await take(store, 2 + EACH, session="s7"))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await begin_all(store)
        await write_all(store)
    assert {event.session for event in taken} == {"s7"}
    texts = [event.body.text for event in taken if isinstance(event.body, e.AgentText)]
    assert texts == [str(number) for number in range(EACH)]


async def test_a_reader_of_a_quiet_session_among_busy_ones_is_woken(where: Where) -> None:
    """The reader's position falls behind the tail repeatedly while there are no events for it."""
    async with open_store(where, clock=SystemClock(), tail_events=16) as store:
        await begin_all(store)
        taken: list[e.Event] = []

        async def read() -> None:
            taken.extend(await take(store, 3, session="s0"))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for number in range(100):
                await store.append("s1", e.AgentText(text=str(number)))
            await store.append("s0", e.AgentText(text="at last"))
        assert taken[-1].body == e.AgentText(text="at last")


async def test_a_reader_continues_where_it_stopped(where: Where) -> None:
    async with open_store(where, clock=SystemClock()) as store:
        recorded = await store.append("s1", *beginning(), *(e.AgentText(text=str(n)) for n in range(10)))
        first = await take(store, 5)
        # The number is still valid after a restart of the daemon.
    async with open_store(where, clock=SystemClock()) as store:
        rest = await take(store, 7, after=first[-1].seq)
        assert first + rest == recorded


async def test_a_reader_after_a_future_number_waits_for_it(store: Store) -> None:
    await store.append("s1", *beginning())
    async with anyio.create_task_group() as group:

        async def read() -> None:
            [event] = await take(store, 1, after=4)
            assert event.seq == 5

        group.start_soon(read)
        for number in range(3):
            await store.append("s1", e.AgentText(text=str(number)))


async def test_a_reader_that_stops_reading_uses_no_memory(where: Where) -> None:
    async with open_store(where, clock=SystemClock(), tail_events=32) as store:
        await store.append("s1", *beginning())
        async with aclosing(store.follow()) as events:
            first = await anext(events)
            for number in range(20):
                await store.append("s1", *(e.AgentText(text=str(number)) for _ in range(20)))
            assert len(store._tail._held) <= 32
            seen = [first.seq]
            async for event in events:
                seen.append(event.seq)
                if len(seen) == 402:
                    break
        assert seen == sorted(set(seen))


async def test_large_events_are_bounded_in_the_tail_by_their_bytes(store: Store) -> None:
    await store.append("s1", *beginning())
    large = e.AgentOutput(text="")
    for _ in range(20):
        await store.write(lambda conn: journal.record(conn, "s1", large, at=1.0, raw=bytes(4 << 20)))
    assert sum(one.size for one in store._tail._held) <= 32 << 20
    assert len(await take(store, 22)) == 22


async def test_events_left_out_of_memory_reach_readers_through_the_database(store: Store) -> None:
    def many(conn: Connection) -> None:
        with uncollected(conn):
            journal.record_many(conn, "s1", [(e.AgentText(text=str(n)), None) for n in range(1000)], at=1.0)
        journal.record(conn, "s1", e.AgentText(text="last"), at=1.0)

    await store.append("s1", *beginning())
    await store.append("s2", *beginning())
    taken: list[list[e.Event]] = []

    async def read(count: int, session: str | None) -> None:
        taken.append(await take(store, count, session=session))

    async with anyio.create_task_group() as group:
        for count, session in ((1007, None), (1003, "s1"), (4, "s2")):
            group.start_soon(read, count, session)
        await anyio.wait_all_tasks_blocked()
        # All at once, so that they share one commit.
        group.start_soon(store.append, "s2", e.AgentText(text="before"))
        group.start_soon(store.write, many)
        group.start_soon(store.append, "s2", e.AgentText(text="after"))
    assert len(store._tail._held) < 10
    stored = await store.read(lambda conn: journal.events(conn, limit=2000))
    assert sorted(taken, key=len)[-1] == stored


async def test_followers_get_no_events_of_a_forgotten_session(store: Store) -> None:
    await store.append("s1", *beginning(), e.TaskFailed(failure=FAILURE))
    await store.append("s2", *beginning())
    await store.write(lambda conn: journal.forget(conn, "s1"))
    assert [event.session for event in await take(store, 2)] == ["s2", "s2"]


async def test_a_session_whose_id_returned_is_followed_again(store: Store) -> None:
    """As after `hv rm` and `hv import`."""
    await store.append("s1", *beginning(), e.TaskFailed(failure=FAILURE))
    await store.write(lambda conn: journal.forget(conn, "s1"))
    await store.append("s1", *beginning())
    async with aclosing(store.follow(session="s1")) as events, anyio.create_task_group() as group:
        for _ in beginning():
            await anext(events)
        group.start_soon(store.append, "s1", e.AgentText(text="later"))
        with anyio.fail_after(PATIENCE):
            assert (await anext(events)).body == e.AgentText(text="later")


async def test_events_of_another_process_are_not_left_out(tmp_path: Path) -> None:
    """Two daemons on one file are not supported, but even then a reader misses nothing."""
    path = tmp_path / "journal.db"
    async with open_store(path, clock=SystemClock()) as one, open_store(path, clock=SystemClock()) as two:
        await one.append("s1", *beginning())
        taken: list[e.Event] = []

        async def read() -> None:
            taken.extend(await take(one, 5))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await two.append("s1", e.AgentText(text="of another"))
            await two.append("s1", e.AgentText(text="and more"))
            await one.append("s1", e.AgentText(text="own"))
        assert [event.seq for event in taken] == [1, 2, 3, 4, 5]


async def test_a_lost_connection_to_postgresql_fails_the_write_and_the_next_one_connects_again(
    postgres: Server,
) -> None:
    with fresh_database(postgres) as url:
        async with open_store(url, clock=SystemClock()) as store:
            await store.append("s1", *beginning())
            postgres.end_connections(name_of(url))
            with pytest.raises(StoreUnusable):
                await store.append("s1", e.Notice(message="lost"))
            await store.append("s1", e.Notice(message="kept"))
            assert [event.body.type for event in await take(store, 3)][2:] == ["notice"]
