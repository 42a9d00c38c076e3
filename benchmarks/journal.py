"""How fast the journal is: durable appends, and how soon a follower has them.

    python -m benchmarks.journal [--json] [--directory DIR]

The floors are measured in the same run on the same disk: sqlite3 in a plain loop, and a file that is synced once per
batch, both in batches of as many events as there are writers. They know no states, no savepoints and no followers.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import anyio

from benchmarks._figures import Figure, Figures
from hiveyard.core import events as e
from hiveyard.core.errors import HiveyardError
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store

WRITERS = 50
EACH = 400
READERS = 4
PACED_PER_SECOND = 500
PACED = 1500
BODY = e.AgentToolReturned(call="toolu_01", tool="Bash", output="collected 12 items, 1 failed\n" * 6)
RAW = b'{"type":"user","message":{"content":[{"type":"tool_result"}]}}' * 5


class Run:
    """One run of writers with followers beside them: when each event was sent, acknowledged and received."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sent: dict[int, float] = {}
        self.acknowledged: dict[int, float] = {}
        self.received: list[tuple[int, float]] = []
        self.failures = 0
        self.elapsed = 0.0

    async def append(self, session: str) -> None:
        sent = time.perf_counter()
        try:
            event = await self.store.write(lambda conn: journal.record(conn, session, BODY, at=sent, turn=1, raw=RAW))
        except HiveyardError:
            self.failures += 1
            return
        self.acknowledged[event.seq] = time.perf_counter()
        self.sent[event.seq] = sent

    async def flood(self, readers: int) -> None:
        """All writers as fast as they are answered."""

        async def write(session: str) -> None:
            for _ in range(EACH):
                await self.append(session)

        async with anyio.create_task_group() as following:
            await self._start_readers(following, readers)
            begun = time.perf_counter()
            async with anyio.create_task_group() as writing:
                for number in range(WRITERS):
                    writing.start_soon(write, f"s{number}")
            self.elapsed = time.perf_counter() - begun
            await self._all_received(readers)
            following.cancel_scope.cancel()

    async def pace(self, readers: int) -> None:
        """Events at a steady rate, as a dozen busy agents make them."""
        async with anyio.create_task_group() as following:
            await self._start_readers(following, readers)
            begun = time.perf_counter()
            async with anyio.create_task_group() as writing:
                for number in range(PACED):
                    await anyio.sleep(max(0.0, begun + number / PACED_PER_SECOND - time.perf_counter()))
                    writing.start_soon(self.append, f"s{number % WRITERS}")
            await self._all_received(readers)
            following.cancel_scope.cancel()

    def to_reader(self, since: dict[int, float]) -> list[float]:
        """Seconds to each reader; 0 where the reader had it before the writer was told."""
        return [max(0.0, at - since[seq]) for seq, at in self.received if seq in since]

    def to_acknowledged(self) -> list[float]:
        return [at - self.sent[seq] for seq, at in self.acknowledged.items()]

    async def _start_readers(self, group: anyio.abc.TaskGroup, readers: int) -> None:
        after = await self.store.read(journal.last_seq)
        for _ in range(readers):
            group.start_soon(self._read, after)

    async def _read(self, after: int) -> None:
        async with aclosing(self.store.follow(after=after)) as events:
            async for event in events:
                self.received.append((event.seq, time.perf_counter()))

    async def _all_received(self, readers: int) -> None:
        with anyio.move_on_after(30):
            while len(self.received) < readers * len(self.acknowledged):  # noqa: ASYNC110 (counts, no event)
                await anyio.sleep(0.01)


async def measure(directory: Path, figures: Figures) -> None:
    async with open_store(directory / "journal.db", clock=SystemClock()) as store:
        for number in range(WRITERS):
            born = e.SessionCreated(slug=f"s{number}", repo="/r", agent="claude")
            await store.append(f"s{number}", e.TaskCreated(slug=f"s{number}", request={}), born)
        await Run(store).flood(0)  # the first use of every statement compiles it
        alone, followed, paced = Run(store), Run(store), Run(store)
        await alone.flood(0)
        await followed.flood(READERS)
        await paced.pace(READERS)
    count = WRITERS * EACH
    name = f"durable appends, {WRITERS} writers"
    rate = figures.rate(name, count, alone.elapsed, failures=alone.failures, aim=">= 10,000/s")
    figures.rate(f"the same with {READERS} followers", count, followed.elapsed, failures=followed.failures)
    figures.times("append to acknowledged, flood", alone.to_acknowledged())
    _latencies(figures, f"{READERS} followers, flood", followed)
    _latencies(figures, f"{READERS} followers, {PACED_PER_SECOND}/s", paced)
    floor = sqlite_floor(directory / "floor.db", figures)
    file_floor(directory / "floor.jsonl", figures)
    figures.ratio("plain sqlite3 / journal", floor, rate)


def _latencies(figures: Figures, load: str, run: Run) -> None:
    missing = READERS * len(run.acknowledged) - len(run.received)
    figures.times(f"acknowledged to reader, {load}", run.to_reader(run.acknowledged), failures=missing, aim="p99 10 ms")
    figures.times(f"append to reader, {load}", run.to_reader(run.sent), failures=missing)


def sqlite_floor(path: Path, figures: Figures) -> Figure:
    text = journal.event_line(e.Event(seq=0, at=0.0, session="s", body=BODY)).decode()
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute("PRAGMA synchronous=FULL")
    conn.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at, session, turn, body, raw)")
    conn.execute("CREATE INDEX events_by_session ON events (session, seq)")
    begun = time.perf_counter()
    for _ in range(EACH):
        conn.execute("BEGIN IMMEDIATE")
        for number in range(WRITERS):
            row = (begun, f"s{number}", 1, text, RAW)
            conn.execute("INSERT INTO events (at, session, turn, body, raw) VALUES (?, ?, ?, ?, ?)", row)
        conn.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    conn.close()
    return figures.rate(f"floor: plain sqlite3, batches of {WRITERS}", WRITERS * EACH, elapsed)


def file_floor(path: Path, figures: Figures) -> Figure:
    line = journal.event_line(e.Event(seq=0, at=0.0, session="s", body=BODY, raw=RAW))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    begun = time.perf_counter()
    for _ in range(EACH):
        os.write(fd, line * WRITERS)
        os.fsync(fd)
    elapsed = time.perf_counter() - begun
    os.close(fd)
    return figures.rate(f"floor: write and fsync, batches of {WRITERS}", WRITERS * EACH, elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the journal.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--directory", type=Path, help="where the database is made; the disk that counts")
    options = parser.parse_args()
    figures = Figures("journal")
    with tempfile.TemporaryDirectory(prefix="hv-bench-", dir=options.directory) as directory:
        anyio.run(measure, Path(directory), figures)
    figures.show(as_json=options.json)


if __name__ == "__main__":
    main()
