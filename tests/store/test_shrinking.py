"""The SQLite file returns its free pages, also one of an older version, and loses no events."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal, shrinking, views
from hiveyard.store.database import Store, open_store

from .stories import beginning, middle

pytestmark = pytest.mark.anyio
WRITER = Path(__file__).with_name("flooding.py")
OLD = Path(__file__).with_name("journals") / "0002.sql"  # a dump of a journal, with an event of each type
FLOOD = 40 << 20


def old_journal(path: Path, flood: int = 0) -> None:
    """Create the journal of a version without auto_vacuum, with `flood` bytes of free pages."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode=WAL")
        conn.executescript(OLD.read_text())
        if flood:
            conn.execute("CREATE TABLE flood (data BLOB)")
            conn.execute("INSERT INTO flood VALUES (zeroblob(?))", (flood,))
            conn.execute("DROP TABLE flood")


def pragma(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as conn:
        return int(conn.execute(f"PRAGMA {name}").fetchone()[0])


async def flood(store: Store, session: str, size: int = FLOOD) -> None:
    """Write about `size` bytes of output in a session that can be forgotten."""
    await store.append(session, *beginning(session), e.SessionFailed(failure=FAILURE), e.TaskFailed(failure=FAILURE))
    for _ in range(size >> 22):
        await store.append(session, *(e.AgentOutput(text="x" * (1 << 16)) for _ in range(64)))


FAILURE = e.Failure(code="internal", message="flooded", hint="")


async def forget(store: Store, session: str) -> None:
    await store.write(lambda conn: journal.forget(conn, session))


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110 (a file has no event)
            await anyio.sleep(0.02)


def size(path: Path) -> int:
    log = path.with_name(path.name + "-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


async def test_the_journal_shrinks_after_a_flooded_session_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_store(path, clock=SystemClock()) as store:
        await store.append("s1", *beginning(), *middle())
        kept = await store.read(journal.events)
        await flood(store, "s2")
        assert size(path) > FLOOD
        await forget(store, "s2")
        # Writes go on while pages are freed.
        [event] = await store.append("s1", e.Notice(message="meanwhile"))
        await until(lambda: size(path) < shrinking.SMALL_LOG + (4 << 20))
        assert await store.read(journal.events) == [*kept, event]
        found = await store.space()
        assert found is not None and found.path == path and found.free == 0
    assert size(path) < 4 << 20


async def test_a_reader_of_the_log_does_not_hold_up_writes_while_the_journal_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    begun, go_on = anyio.Event(), threading.Event()

    def read_slowly(conn: Connection) -> int:
        count = len(views.sessions(conn))
        anyio.from_thread.run_sync(begun.set)
        go_on.wait(60)
        return count

    async with open_store(path, clock=SystemClock()) as store:
        await flood(store, "s1")
        await store.append("s2", *beginning("other"))
        async with anyio.create_task_group() as group:
            group.start_soon(store.read, read_slowly)
            await begun.wait()
            try:
                await forget(store, "s1")
                await until(lambda: pragma(path, "freelist_count") <= shrinking.SPARE)
                for _ in range(20):
                    with anyio.fail_after(4):  # a checkpoint that waits for the reader takes 5
                        await store.append("s2", e.Notice(message="not held up"))
            finally:
                go_on.set()
        await until(lambda: size(path) < shrinking.SMALL_LOG + (4 << 20))


async def test_a_journal_of_an_older_version_opens_completely_and_can_shrink(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    old_journal(path, flood=FLOOD)
    assert pragma(path, "auto_vacuum") == 0
    assert size(path) > FLOOD
    async with open_store(path, clock=SystemClock()) as store:
        events = await store.read(journal.events)
        assert [event.seq for event in events] == list(range(1, 66))
        newer = {e.SessionChanged, e.SessionOpened, e.SessionStopAsked, *e.LiveEvent.__args__, *e.HiveEvent.__args__}
        assert {type(event.body) for event in events} >= set(e.AnyBody.__args__) - newer
        assert not any(isinstance(ev.body, e.Notice) and ev.body.code == journal.UNKNOWN_EVENT for ev in events)
        assert (await store.read(lambda conn: views.task(conn, "s1"))).state == "completed"
        assert (await store.read(lambda conn: views.session(conn, "s2"))).phase == "stopped"
        assert [row.name for row in await store.read(views.snapshots)] == ["kept"]
        [event] = await store.append("s2", e.Notice(message="goes on"))
        assert event.seq == 66
        assert size(path) < 4 << 20
    assert pragma(path, "auto_vacuum") == 2


async def test_a_large_journal_of_an_older_version_shrinks_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "SMALL", 0)
    path = tmp_path / "journal.db"
    old_journal(path, flood=FLOOD)
    async with open_store(path, clock=SystemClock()) as store:
        assert size(path) > FLOOD
        found = await store.space()
        assert found is not None and FLOOD - (1 << 20) < found.free < found.size  # newer tables took some
        await store.shrink()
        assert size(path) < 4 << 20
        assert len(await store.read(journal.events)) == 65
    assert pragma(path, "auto_vacuum") == 2


async def test_a_journal_shrinks_on_request(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_store(path, clock=SystemClock()) as store:
        await flood(store, "s1")
        await forget(store, "s1")
        await store.shrink()
        found = await store.space()
        assert found is not None and found.free == 0
        assert size(path) < shrinking.SMALL_LOG + (4 << 20)


def flood_and_kill(path: Path, first: int, lines: int) -> tuple[set[int], set[str]]:
    """Kill a program that many lines after it forgot a session; return the numbers that it acknowledged, and the
    sessions that it had forgotten."""
    argv = [sys.executable, str(WRITER), str(path), str(first)]
    numbers: set[int] = set()
    forgotten: set[str] = set()
    since = 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if forgotten:
                since += 1
            if since == lines:
                process.kill()
            if not line.endswith(b"\n"):
                continue
            what, value = line.decode().split()
            if what == "forgot":
                forgotten.add(value)
            else:
                numbers.add(int(value))
    assert process.returncode == -9
    return numbers, forgotten


async def test_kill_9_while_the_journal_shrinks_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    acknowledged: set[int] = set()
    for kill in range(3):
        numbers, forgotten = flood_and_kill(path, first=100 * kill, lines=random.randrange(1, 25))
        acknowledged |= numbers
        with closing(sqlite3.connect(path)) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert conn.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        async with open_store(path, clock=SystemClock()) as store:
            found = {
                row[0] for row in await store.read(lambda c: c.exec_driver_sql("SELECT seq FROM events").fetchall())
            }
            tasks = {row.id for row in await store.read(views.tasks)}
        assert acknowledged <= found
        assert not tasks & forgotten
