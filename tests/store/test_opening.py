"""Opening a database, and the errors for one that cannot be used."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from hiveyard.core import events as e
from hiveyard.core.errors import BadInput, StoreTooNew, StoreUnusable
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal, migrate
from hiveyard.store.database import open_store
from hiveyard.store.schema import metadata
from hiveyard.store.sqlite import SqliteBackend
from hiveyard.store.writer import Job

from .conftest import Where
from .stories import beginning

pytestmark = pytest.mark.anyio


def differences(conn: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata))


async def test_an_empty_database_gets_the_tables_that_the_code_describes(nowhere: Where) -> None:
    async with open_store(nowhere, clock=SystemClock()) as store:
        assert await store.read(differences) == []


async def test_opening_again_finds_all_events(nowhere: Where) -> None:
    async with open_store(nowhere, clock=SystemClock()) as store:
        recorded = await store.append("s1", *beginning())
    async with open_store(nowhere, clock=SystemClock()) as store:
        assert await store.read(journal.events) == recorded


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head() == migrate.HEAD


async def test_a_database_of_a_newer_version_is_left_alone(nowhere: Where) -> None:
    async with open_store(nowhere, clock=SystemClock()) as store:
        await store.write(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(StoreTooNew, match="9999") as caught:
        async with open_store(nowhere, clock=SystemClock()):
            pass
    assert caught.value.hint


async def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE recipes (name TEXT)")
    conn.close()
    with pytest.raises(StoreUnusable, match="another program: it holds recipes"):
        async with open_store(path, clock=SystemClock()):
            pass


async def test_only_its_owner_can_read_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a %41?#& b.db"
    async with open_store(path, clock=SystemClock()) as store:
        await store.append("s1", *beginning())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert set(modes) == {path.name, f"{path.name}-wal", f"{path.name}-shm"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_commits_of_the_file_wait_for_the_disk(tmp_path: Path) -> None:
    async with open_store(tmp_path / "journal.db", clock=SystemClock()) as store:
        pragmas = [f"PRAGMA {name}" for name in ("journal_mode", "synchronous")]
        values = await store.write(lambda conn: [conn.exec_driver_sql(pragma).scalar() for pragma in pragmas])
    assert values == ["wal", 2]  # 2 is FULL


async def test_a_file_that_is_no_database_is_an_error_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"something else entirely\n" * 1000)
    with pytest.raises(StoreUnusable, match="not an SQLite database") as caught:
        async with open_store(path, clock=SystemClock()):
            pass
    assert caught.value.hint == f"for e in '' -wal -shm; do mv {path}$e {path}.broken$e; done"
    assert path.read_bytes().startswith(b"something else")


async def test_a_damaged_file_is_reported_as_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_store(path, clock=SystemClock()) as store:
        await store.append("s1", *beginning(), *(e.AgentText(text="x" * 5000) for _ in range(50)))
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreUnusable, match="damaged"):
        async with open_store(path, clock=SystemClock()) as store:
            await store.read(journal.events)


async def test_a_directory_in_its_place_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable) as caught:
        async with open_store(tmp_path, clock=SystemClock()):
            pass
    assert caught.value.hint.startswith("ls -ld")


async def test_a_file_where_a_directory_should_be_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable) as caught:
        async with open_store(tmp_path / "file" / "journal.db", clock=SystemClock()):
            pass
    assert caught.value.hint.startswith("ls -ld")


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x", "sqlite://", ""])
async def test_an_invalid_address_is_bad_input(url: str) -> None:
    with pytest.raises(BadInput):
        async with open_store(url, clock=SystemClock()):
            pass


async def test_a_url_of_a_file_is_that_file(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/journal.db", clock=SystemClock()) as store:
        await store.append("s1", *beginning())
    assert (tmp_path / "journal.db").is_file()


async def test_an_unreachable_server_is_reported_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable) as caught:
        async with open_store(f"postgresql://hive:Zq8TestSecret@/x?host={tmp_path}", clock=SystemClock()):
            pass
    assert "Zq8TestSecret" not in caught.value.message + caught.value.hint
    assert "postgresql://hive:***@/x" in caught.value.message


async def test_a_second_daemon_on_postgresql_is_refused_while_the_first_one_lives(where: Where) -> None:
    if isinstance(where, Path):
        return
    async with open_store(where, clock=SystemClock()):
        with pytest.raises(StoreUnusable, match="another daemon"):
            async with open_store(where, clock=SystemClock()):
                pass
    async with open_store(where, clock=SystemClock()) as store:
        await store.append("s1", *beginning())


HOLDER = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
conn.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
conn.execute("COMMIT")
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


async def test_a_write_waits_for_another_process_that_is_writing(tmp_path: Path) -> None:
    async with open_store(tmp_path / "journal.db", clock=SystemClock()) as store:
        await store.append("s1", *beginning())
        with held_by_another_process(tmp_path / "journal.db") as holder:
            async with anyio.create_task_group() as group:
                group.start_soon(store.append, "s1", e.Notice(message="waited"))
                # Reads work meanwhile.
                assert len(await store.read(journal.events)) == 2
                assert holder.stdin is not None
                holder.stdin.write(b"\n")
                holder.stdin.flush()
        assert len(await store.read(journal.events)) == 3


async def test_a_lock_that_is_never_released_is_an_error_and_later_writes_work(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    async with open_store(path, clock=SystemClock()) as store:
        await store.append("s1", *beginning())
    backend = SqliteBackend(path, busy=0.05)
    await backend.open()
    try:
        with held_by_another_process(path), pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            await backend.commit([Job(lambda conn: journal.record(conn, "s1", e.Notice(message="x"), at=1.0))])
        error = backend.failure(caught.value)
        assert isinstance(error, StoreUnusable) and "another process" in error.message and error.hint
        outbox = await backend.commit([Job(lambda conn: journal.record(conn, "s1", e.Notice(message="x"), at=1.0))])
        assert len(outbox.appended) == 1
    finally:
        await backend.aclose()
