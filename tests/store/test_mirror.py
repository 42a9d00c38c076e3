"""The event files are equal to the journal, also after damage."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from hiveyard.core import events as e
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store
from hiveyard.store.mirror import mirror

from .stories import beginning

pytestmark = pytest.mark.anyio


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for session in ("s1", "s2"):
        (tmp_path / session).mkdir()
    return tmp_path


def path_in(home: Path) -> Callable[[str], Path | None]:
    return lambda session: home / session / "events.jsonl" if (home / session).is_dir() else None


@asynccontextmanager
async def mirroring(store: Store, home: Path) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        await group.start(mirror, store, path_in(home))
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Store]:
    async with open_store(home / "journal.db", clock=SystemClock()) as store:
        yield store


async def expected(store: Store, session: str) -> bytes:
    return b"".join(line for _, line in await store.read(lambda conn: journal.lines(conn, session, limit=100_000)))


async def settled(store: Store, home: Path, session: str) -> None:
    """Wait until the file is equal to the journal. Only the test's own time limit applies."""
    wanted = await expected(store, session)
    path = home / session / "events.jsonl"
    with anyio.fail_after(30):
        while not path.is_file() or path.read_bytes() != wanted:  # noqa: ASYNC110 (files tell nobody)
            await anyio.sleep(0.005)
    assert wanted


async def test_each_session_has_its_events_as_lines_while_they_happen(home: Path) -> None:
    async with opened(home) as store, mirroring(store, home):
        for session in ("s1", "s2"):
            await store.append(session, *beginning())

        async def write(session: str) -> None:
            for number in range(100):
                await store.append(session, e.AgentText(text=f"{number}\n☂"))

        async with anyio.create_task_group() as group:
            for session in ("s1", "s2"):
                group.start_soon(write, session)
        await settled(store, home, "s1")
        await settled(store, home, "s2")
        lines = (home / "s1" / "events.jsonl").read_bytes().splitlines()
        decoded = [msgspec.json.decode(line, type=e.Event) for line in lines]
        assert decoded == await store.read(lambda conn: journal.events(conn, session="s1"))


TORN = b'{"seq":3,"at":1.0,"session":"s1","tur'


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="emptied"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut in a line"),
        pytest.param(lambda data: data[:-1], id="without its last newline"),
        pytest.param(lambda data: data + TORN, id="torn at the end"),
        pytest.param(lambda data: b"\x00" * len(data), id="zeroed by a power cut"),
        pytest.param(lambda data: b"no lines of ours\n", id="something else"),
        pytest.param(lambda data: data + b'{"seq":999,"session":"s1"}\n', id="an event that never was"),
        pytest.param(lambda data: data.replace(b'"s1"', b'"s2"'), id="of another session"),
        pytest.param(lambda data: data + b'{"seq":3,"session":"\xff"}\n', id="no text"),
        pytest.param(lambda data: b"x" * 300_000 + b"\n", id="one long line"),
    ],
)
async def test_a_damaged_file_is_repaired_at_start(home: Path, damage: Callable[[bytes], bytes]) -> None:
    path = home / "s1" / "events.jsonl"
    async with opened(home) as store:
        async with mirroring(store, home):
            await store.append("s1", *beginning(), *(e.AgentText(text=str(n)) for n in range(20)))
            await settled(store, home, "s1")
        path.write_bytes(damage(path.read_bytes()))
        await store.append("s1", e.Notice(message="while nobody mirrored"))
    async with opened(home) as store, mirroring(store, home):
        # It is complete once the mirror has started.
        assert path.read_bytes() == await expected(store, "s1")
        await store.append("s1", e.Notice(message="and on"))
        await settled(store, home, "s1")


async def test_a_file_that_is_removed_while_it_grows_is_written_again(home: Path) -> None:
    async with opened(home) as store, mirroring(store, home):
        await store.append("s1", *beginning())
        await settled(store, home, "s1")
        (home / "s1" / "events.jsonl").unlink()
        await store.append("s1", e.Notice(message="again"))
        await settled(store, home, "s1")


async def test_a_directory_that_is_made_after_its_first_events_gets_all_of_them(home: Path) -> None:
    async with opened(home) as store, mirroring(store, home):
        await store.append("s3", *beginning())
        (home / "s3").mkdir()
        await store.append("s3", e.Notice(message="now"))
        await settled(store, home, "s3")


async def test_a_removed_directory_stops_nothing(home: Path) -> None:
    async with opened(home) as store, mirroring(store, home):
        for session in ("s1", "s2"):
            await store.append(session, *beginning())
            await settled(store, home, session)
        (home / "s1" / "events.jsonl").unlink()
        (home / "s1").rmdir()
        await store.append("s1", e.Notice(message="to nowhere"))
        await store.append("s2", e.Notice(message="still"))
        await settled(store, home, "s2")
        assert not (home / "s1").exists()


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
async def test_a_link_or_device_of_a_guest_is_not_written_to(home: Path, kind: str) -> None:
    path, victim = home / "s1" / "events.jsonl", home / "victim"
    victim.write_text("mine")
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    async with opened(home) as store, mirroring(store, home):
        for session in ("s1", "s2"):
            await store.append(session, *beginning())
        await settled(store, home, "s2")
        path.rmdir() if kind == "directory" else path.unlink()
        await store.append("s1", e.Notice(message="free again"))
        await settled(store, home, "s1")
    assert victim.read_text() == "mine"


async def test_events_of_hiveyard_itself_need_no_file(home: Path) -> None:
    async with opened(home) as store, mirroring(store, home):
        await store.append("", e.Notice(message="hello"))
        await store.append("s1", *beginning())
        await settled(store, home, "s1")
