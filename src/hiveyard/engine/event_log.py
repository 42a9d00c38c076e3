"""The event log of the engine: append events and the state they lead to in one transaction, and read rows."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import anyio
from sqlalchemy import Connection

from hiveyard.core.events import AnyBody, Notice, PhaseEnded, Progress
from hiveyard.core.machines import Report
from hiveyard.kit.clock import Clock
from hiveyard.kit.group import together
from hiveyard.kit.progress import heartbeat
from hiveyard.store import journal
from hiveyard.store.database import Store

T = TypeVar("T")


class Entry(NamedTuple):
    """An event's body, with the raw output line that it came from, if any."""

    body: AnyBody
    raw: bytes | None = None


class Listing(list[T]):
    """A list with the number of the last event that it is based on: `/v1/events` after it continues the list."""

    def __init__(self, items: Iterable[T], seq: int) -> None:
        super().__init__(items)
        self.seq = seq


class EventLog:
    """The engine's access to the store; it adds the time to each event."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.clock = clock

    async def record(self, session: str, *bodies: AnyBody, turn: int | None = None) -> None:
        """Append events and apply their state changes, all or none. Return when they are durable.

        Raises IllegalMove when a state does not allow one of them.
        """
        await self.store.append(session, *bodies, turn=turn)

    async def record_entries(self, session: str, entries: Sequence[tuple[int | None, Entry]]) -> None:
        """Append events, each with its turn, all or none."""
        now = self.clock.now()

        def write(conn: Connection) -> None:
            _record(conn, session, entries, now)

        await self.store.write(write)

    async def record_output(self, session: str, turn: int, entries: Sequence[Entry], offset: int) -> None:
        """Append the events of an agent's output lines, together with how far the output has been read."""
        now = self.clock.now()

        def write(conn: Connection) -> None:
            _record(conn, session, [(turn, entry) for entry in entries], now)
            journal.advance_output(conn, session, turn, offset)

        await self.store.write(write)

    async def record_feed(self, session: str, placed: Sequence[tuple[int | None, Entry]], offset: int) -> None:
        """Append the events of a session's feed, each with its turn, and how far the feed has been read."""
        now = self.clock.now()

        def write(conn: Connection) -> None:
            _record(conn, session, placed, now)
            journal.advance_feed(conn, session, offset)

        await self.store.write(write)

    async def move_feed(self, session: str, offset: int, *notices: Notice) -> None:
        """Record that reading a session's feed continues at byte `offset`."""
        now = self.clock.now()

        def write(conn: Connection) -> None:
            journal.move_feed(conn, session, offset)
            for notice in notices:
                journal.record(conn, session, notice, at=now)

        await self.store.write(write)

    async def read(self, question: Callable[[Connection], T]) -> T:
        return await self.store.read(question)

    async def read_list(self, question: Callable[[Connection], list[T]]) -> Listing[T]:
        """Return a list and its sequence number, read in one transaction."""
        seq, items = await self.store.read(lambda conn: (journal.last_seq(conn), question(conn)))
        return Listing(items, seq)

    @asynccontextmanager
    async def progress(self, session: str, step: str) -> AsyncIterator[Report]:
        """Yield a Report whose lines become Progress events, in order, while the block runs. After seconds without a
        line, the last one (or `step`) is repeated with the time that it takes."""
        send, receive = anyio.create_memory_object_stream[str](math.inf)

        async def write() -> None:
            with receive:
                async for line in receive:
                    await self.record(session, Progress(message=line))

        async with together() as group:
            group.start_soon(write, name="progress")
            with send:
                async with heartbeat(send.send_nowait, step) as report:
                    yield report

    @asynccontextmanager
    async def phase(self, session: str, name: str) -> AsyncIterator[None]:
        """Record how long the block took, if it succeeds."""
        start = self.clock.monotonic()
        yield
        await self.record(session, PhaseEnded(phase=name, seconds=self.clock.monotonic() - start))


def _record(conn: Connection, session: str, entries: Iterable[tuple[int | None, Entry]], at: float) -> None:
    for turn, entry in entries:
        journal.record(conn, session, entry.body, at=at, turn=turn, raw=entry.raw)
