"""Disk usage, and freeing only items that nothing needs."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from hiveyard.engine.engine import Engine
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.store import shrinking
from tests.engine.conftest import Yard
from tests.engine.yards import run_turn, spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio
AGES = 7200.0


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


def old(path: Path) -> Path:
    """Make a path look hours old. Its change time cannot be set back, so the tests lower the limit."""
    path.mkdir(parents=True)
    (path / "data").write_bytes(os.urandom(1 << 20))
    os.utime(path, (time.time() - AGES, time.time() - AGES))
    return path


def image(yard: Yard, id: str, name: str, at: float) -> Path:
    """Create a built image in the cache."""
    place = yard.paths.cache / "images" / id
    place.mkdir(parents=True)
    (place / "rootfs.tar").write_bytes(os.urandom(2 << 20))
    about = {
        "id": id,
        "name": name,
        "recipe": f"recipe of {id}",
        "programs": {},
        "env": {},
        "size": 2 << 20,
        "created_at": at,
    }
    (place / "image.json").write_text(json.dumps(about))
    return place


async def sizes(engine: Engine) -> dict[str, int]:
    found: dict[str, int] = {}
    for cost in (await engine.housekeeping.costs()).costs:
        found[cost.kind] = found.get(cost.kind, 0) + cost.size
    return found


async def test_disk_usage_lists_sessions_snapshots_and_images(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run head -c 4M /dev/urandom > large; truncate -s 64M hole")
        await anyio.sleep(2.1)  # files that changed a moment ago do not count as unchanged
        await engine.snapshots.take(id, "one")
        await engine.snapshots.take(id, "two")
        found = await sizes(engine)
        assert 4 << 20 <= found["session"] < 8 << 20
        assert 4 << 20 <= found["snapshot"] < 8 << 20  # the second shares with the first
        assert found["bubblewrap machine"] > 0
        costs = await engine.housekeeping.costs()
        assert costs.total == sum(cost.size for cost in costs.costs)
        assert (costs.reclaimable, costs.reclaimable_all) == (0, 0)
        await engine.sessions.stop(id)


@pytest.mark.usefixtures("file_journal")
async def test_the_database_is_listed_and_its_free_pages_are_released(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "SMALL", 0)  # otherwise it shrinks when it is opened
    database = yard.paths.database
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as conn:
        conn.executescript((Path(__file__).parents[2] / "store" / "journals" / "0002.sql").read_text())
        conn.execute("DELETE FROM ports")
        conn.execute("CREATE TABLE flood (data BLOB)")
        conn.execute("INSERT INTO flood VALUES (zeroblob(?))", (16 << 20,))
        conn.execute("DROP TABLE flood")
    async with yard.open() as engine:
        rows = [cost for cost in (await engine.housekeeping.costs()).costs if cost.kind == "database"]
        assert [cost.name for cost in rows] == ["hiveyard.db", "hiveyard.db, free pages"]
        assert [cost.freed_by for cost in rows] == ["", "prune"]
        assert 0 < rows[0].size < 2 << 20 and rows[1].size > 15 << 20
        done = await engine.housekeeping.prune()
        assert [cost.name for cost in done.removed if cost.kind == "database"] == ["hiveyard.db, free pages"]
        assert done.failed == [] and database.stat().st_size < 2 << 20
        [row] = [cost for cost in (await engine.housekeeping.costs()).costs if cost.kind == "database"]
        assert row.freed_by == "" and row.size < 12 << 20


async def test_only_unneeded_items_are_freed(yard: Yard, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiveyard.engine.upkeep.housekeeping._MAX_BUILD_SECONDS", 0.5)
    needed = image(yard, "aaaa000000000001", "mine", 3.0)
    newer, older = image(yard, "bbbb000000000002", "other", 2.0), image(yard, "cccc000000000003", "other", 1.0)
    root, stale = old(yard.paths.cache / "bubblewrap" / newer.name), old(yard.paths.cache / "bubblewrap" / "dead")
    half = old(yard.paths.cache / "bubblewrap" / ".dead.new-x")
    building = old(yard.paths.cache / "images" / ".building-x")
    await anyio.sleep(0.6)
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.snapshots.take(id, "one")
        row = await engine.sessions.row(id)
        assert row.request is not None
        from hiveyard.core.events import SnapshotTaken

        kept = SnapshotTaken(snapshot="p1", name="kept", live=False, image=needed.name)
        await engine.snapshots._r.event_log.record(id, kept)
        before = [needed, newer, older, root, stale, half, building]
        said = await engine.housekeeping.prune(dry_run=True)
        assert all(path.exists() for path in before)
        done = await engine.housekeeping.prune()
        assert done.failed == []
        assert [cost.name for cost in done.removed] == [cost.name for cost in said.removed]
        names = sorted(cost.name for cost in done.removed)
        assert names == [".building-x", ".dead.new-x", "dead", "other cccc000000000003"]
        assert done.freed == said.freed >= 5 << 20
        assert [path.name for path in before if path.exists()] == [needed.name, newer.name, root.name]
        assert (await engine.housekeeping.prune()).removed == []
        done = await engine.housekeeping.prune(all=True)
        assert done.failed == []
        assert [path for path in before if path.exists()] == [needed]
        await run_turn(engine, id, "remember apple")  # the session was not disturbed
        await engine.sessions.stop(id)


async def test_files_of_a_killed_build_outside_the_cache_are_freed(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hiveyard.engine.upkeep.housekeeping._MAX_BUILD_SECONDS", 0.5)
    building, elsewhere = yard.paths.cache / "images" / ".building-x", old(tmp_path / "hiveyard-build-x")
    building.mkdir(parents=True)
    record = building / "elsewhere"
    record.write_bytes(bytes(tmp_path / "hiveyard-build-another"))
    await anyio.sleep(0.6)
    async with yard.open() as engine:
        done = await engine.housekeeping.prune()
        assert done.removed == []
        assert "hiveyard-build-another" in done.failed[0]
        record.write_bytes(bytes(elsewhere))
        assert [cost.name for cost in (await engine.housekeeping.prune()).removed] == [building.name]
    assert not building.exists()
    assert not elsewhere.exists()


async def test_items_that_a_process_has_open_are_kept(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiveyard.engine.upkeep.housekeeping._MAX_BUILD_SECONDS", 0.5)
    half = old(yard.paths.cache / "bubblewrap" / ".dead.new-x")
    await anyio.sleep(0.6)
    async with yard.open() as engine:
        with (half / "data").open("rb"):
            assert (await engine.housekeeping.prune()).removed == []
        assert half.exists()
        assert len((await engine.housekeeping.prune()).removed) == 1
        assert not half.exists()


@pytest.mark.long("storms")
async def test_twenty_sessions_share_their_repositorys_history(yard: Yard, repo: Path) -> None:
    (repo / "data.bin").write_bytes(os.urandom(8 << 20))
    from tests.engine.conftest import git

    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "data")
    async with yard.open() as engine:
        id = await spawned(engine, repo, memory_mib=128)
        one = (await sizes(engine))["session"]
        children = (await engine.forks.fork(id, ForkRequest(count=19))).children
        for child in children:
            await wait_until(engine, child, lambda view: view.status == "running")
        found = await sizes(engine)
        work = one - _objects(yard, id)
        # The history is shared. Each session has its own files where the file system cannot share blocks.
        assert found["session"] <= 3 * one + 19 * work
        for session in (id, *children):
            await engine.sessions.stop(session)


def _objects(yard: Yard, id: str) -> int:
    origin = yard.paths.sessions / id / "origin.git" / "objects"
    return sum(path.stat().st_size for path in origin.rglob("*") if path.is_file())
