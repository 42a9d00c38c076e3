"""kill -9 during appends, and a full disk."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.core.errors import StoreUnusable
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.process import run
from hiveyard.store import journal, views
from hiveyard.store.database import Store, open_store

from .fold import fold, stored
from .stories import beginning

pytestmark = pytest.mark.anyio
APPENDER = Path(__file__).with_name("appender.py")
KILLS = 6


def append_and_kill(path: Path, first: int, lines: int) -> dict[str, list[int]]:
    """Kill a program after about `lines` acknowledged writes; return their numbers per session."""
    acknowledged: dict[str, list[int]] = {}
    argv = [sys.executable, str(APPENDER), str(path), str(first)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            if count == lines:
                process.kill()
            if line.endswith(b"\n"):
                session, *numbers = line.decode().split()
                acknowledged.setdefault(session, []).extend(map(int, numbers))
    assert process.returncode == -9
    return acknowledged


async def all_events(store: Store) -> list[e.Event]:
    return await store.read(lambda conn: journal.events(conn, limit=1_000_000, max_bytes=1 << 30))


async def test_after_kill_9_every_acknowledged_event_is_there_once_and_the_rows_agree(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    acknowledged: dict[str, list[int]] = {}
    for kill in range(KILLS):
        acknowledged |= append_and_kill(path, first=20 * kill, lines=random.randrange(1, 1500))
        async with open_store(path, clock=SystemClock()) as store:
            events = await all_events(store)
            rows = await store.read(stored)
            offsets = await store.read(
                lambda conn: {
                    row.id: [turn.output_offset for turn in views.turns(conn, row.id)] for row in views.sessions(conn)
                }
            )
        numbers = [event.seq for event in events]
        assert numbers == sorted(set(numbers))
        assert {seq for seqs in acknowledged.values() for seq in seqs} <= set(numbers)
        assert rows == fold(events)
        for session, [offset] in ((session, found) for session, found in offsets.items() if found):
            texts = [ev.body.text for ev in events if ev.session == session and isinstance(ev.body, e.AgentText)]
            assert texts == [str(number) for number in range(1, offset + 1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


async def fill(store: Store) -> list[int]:
    """Append until the store refuses; return the acknowledged numbers."""
    acknowledged: list[int] = []
    for _ in range(2000):
        try:
            event = e.AgentOutput(text="x" * 20_000)
            acknowledged += [one.seq for one in await store.append("s1", event)]
        except StoreUnusable as error:
            assert "full" in error.message and error.hint.startswith("df -h ")
            return acknowledged
    raise AssertionError("the disk never became full")


async def test_a_full_disk_is_reported_and_acknowledged_events_stay(small_disk: Path) -> None:
    path = small_disk / "journal.db"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    async with open_store(path, clock=SystemClock()) as store:
        await store.append("s1", *beginning())
        acknowledged = await fill(store)
        assert acknowledged == list(range(3, 3 + len(acknowledged)))
        assert [event.seq for event in await all_events(store)] == [1, 2, *acknowledged]
        # With free space again it works without being opened again.
        ballast.unlink()
        [event] = await store.append("s1", e.Notice(message="room"))
        assert event.seq > max(acknowledged)
    async with open_store(path, clock=SystemClock()) as store:
        assert [ev.seq for ev in await all_events(store)] == [1, 2, *acknowledged, event.seq]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def stuff(disk: Path) -> Path:
    """Fill the disk to its last byte with a file."""
    path = disk / "junk"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC
    assert os.statvfs(disk).f_bavail == 0
    return path


def taken(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


async def test_on_a_full_disk_the_ballast_makes_space_for_writes(disk: Path) -> None:
    path, ballast, size = disk / "journal.db", disk / "ballast", 2 << 20
    async with open_store(path, clock=SystemClock(), ballast=size) as store:
        await store.append("s1", *beginning())
        assert taken(ballast) == size
        junk = stuff(disk)
        ran: list[str] = []

        def wrong(conn: Connection) -> None:
            ran.append("wrong")
            raise ValueError("of this one")

        async with anyio.create_task_group() as group:
            for text in ("one", "two"):
                group.start_soon(store.append, "s1", e.AgentOutput(text=text * 5000))
            with pytest.raises(ValueError, match="of this one"):
                await store.write(wrong)
        assert taken(ballast) < size
        # The process that filled the disk takes the released space, too.
        stuff(disk)
        await store.append("s1", e.AgentOutput(text="three" * 5000))
        texts = [event.body.text[:3] for event in await all_events(store) if isinstance(event.body, e.AgentOutput)]
        assert sorted(texts[:2]) == ["one", "two"]
        assert texts[2:] == ["thr"]
        junk.unlink()
        await store.append("s1", e.Notice(message="room"))
        assert taken(ballast) == size
        events = await all_events(store)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))


async def test_a_journal_is_opened_on_a_full_disk(disk: Path) -> None:
    async with open_store(disk / "journal.db", clock=SystemClock(), ballast=1 << 20) as store:
        await store.append("s1", *beginning())
    stuff(disk)
    async with open_store(disk / "journal.db", clock=SystemClock(), ballast=1 << 20) as store:
        await store.append("s1", e.Notice(message="and written"))
        assert len(await all_events(store)) == len(beginning()) + 1


async def test_a_ballast_is_never_what_fills_the_disk(disk: Path) -> None:
    async with open_store(disk / "journal.db", clock=SystemClock(), ballast=8 << 20) as store:
        await store.append("s1", *beginning())
    assert not (disk / "ballast").exists()


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
import anyio
from pathlib import Path
from hiveyard.core import events as e
from hiveyard.core.errors import StoreUnusable
from hiveyard.kit.clock import SystemClock
from hiveyard.store.database import open_store

async def main():
    async with open_store(Path(sys.argv[1]), clock=SystemClock()) as store:
        await store.append("s1", e.TaskCreated(slug="x", request={}))
        try:
            while True:
                [event] = await store.append("s1", e.AgentOutput(text="x" * 20_000))
                print(event.seq)
        except StoreUnusable as error:
            print(error.code, error.hint, file=sys.stderr)

anyio.run(main)
"""


async def test_a_file_that_may_not_grow_is_reported_and_acknowledged_events_stay(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    done = await run([sys.executable, "-c", LIMITED, str(path)], timeout=120)
    assert done.stderr.decode() == f"store.unusable df -h {tmp_path}\n"
    acknowledged = [1, *map(int, done.stdout.split())]
    assert len(acknowledged) > 10
    async with open_store(path, clock=SystemClock()) as store:
        assert [event.seq for event in await all_events(store)] == acknowledged
