"""A session's current events after rewinds, forks and imports."""

from __future__ import annotations

import pytest

from hiveyard.core import events as e
from hiveyard.core.errors import NotFound
from hiveyard.store import journal, lineage
from hiveyard.store.database import Store

pytestmark = pytest.mark.anyio


async def say(store: Store, text: str, conversation: str = "") -> None:
    body: e.AnyBody = e.AgentStarted(conversation=conversation) if conversation else e.AgentText(text=text)
    await store.write(lambda conn: journal.record(conn, "s1", body, at=1.0, raw=text.encode()))


async def raw(store: Store, upto: int | None = None) -> list[bytes]:
    return await store.read(lambda conn: list(lineage.raw_lines(conn, "s1", upto)))


async def begin(store: Store) -> None:
    await store.append("s1", e.SessionCreated(slug="s1", repo="r", agent="a"), e.SessionPreparing(), e.SessionRunning())


async def rewind(store: Store, snapshot: str) -> None:
    await store.append("s1", e.SessionRewound(snapshot=snapshot), e.SessionRunning())


async def test_events_that_a_rewind_undid_do_not_count(store: Store) -> None:
    await begin(store)
    await say(store, "one", conversation="c1")
    await store.append("s1", e.SnapshotTaken(snapshot="p1", name="first", live=False))
    await say(store, "two", conversation="c2")
    await store.append("s1", e.SnapshotTaken(snapshot="p2", name="second", live=False))
    await say(store, "three")
    assert await raw(store) == [b"one", b"two", b"three"]
    await rewind(store, "p1")
    assert await raw(store) == [b"one"]
    assert await store.read(lambda conn: lineage.conversation(conn, "s1")) == "c1"
    await say(store, "four")
    assert await raw(store) == [b"one", b"four"]
    await rewind(store, "p2")  # and forward again
    await say(store, "five")
    assert await raw(store) == [b"one", b"two", b"five"]
    assert await store.read(lambda conn: lineage.conversation(conn, "s1")) == "c2"


async def test_a_snapshot_has_the_events_of_its_time(store: Store) -> None:
    await begin(store)
    await say(store, "one")
    await store.append("s1", e.SnapshotTaken(snapshot="p1", name="first", live=True))
    await say(store, "two")
    await rewind(store, "p1")
    await say(store, "three")
    await store.append("s1", e.SnapshotTaken(snapshot="p2", name="second", live=True))
    await rewind(store, "p1")
    point = await store.read(lambda conn: lineage.point(conn, "s1", "second"))
    assert point.row.id == "p2"
    assert await raw(store, point.seq) == [b"one", b"three"]


async def test_an_import_starts_a_new_range_of_events(store: Store) -> None:
    await begin(store)
    await say(store, "one", conversation="c1")
    await store.append("s1", e.SessionImported(exported_at=1.0, conversation="c9", feed_offset=12))
    await say(store, "two")
    assert await raw(store) == [b"two"]
    assert await store.read(lambda conn: lineage.conversation(conn, "s1")) == "c9"


async def test_a_session_has_a_pending_start_until_it_runs(store: Store) -> None:
    await store.append("s1", e.SessionCreated(slug="s1", repo="r", agent="a"))
    fork = e.SessionForked(parent="s0", snapshot="p1", live=True, conversation="c0", feed_offset=3)
    await store.append("s1", fork, e.SessionPreparing())
    assert await store.read(lambda conn: lineage.pending_start(conn, "s1")) == fork
    assert await store.read(lambda conn: lineage.conversation(conn, "s1")) == "c0"
    await store.append("s1", e.SessionRunning())
    assert await store.read(lambda conn: lineage.pending_start(conn, "s1")) is None


@pytest.mark.parametrize(
    "turning",
    [e.SessionForked(parent="s0", snapshot="p1", live=True, image="evil.toml"), e.SessionRewound(snapshot="p1")],
)
async def test_forks_and_rewinds_before_an_import_are_no_pending_start(store: Store, turning: e.AnyBody) -> None:
    created = e.SessionCreated(slug="s1", repo="r", agent="a")
    await store.append("s1", created, e.SessionPreparing(), e.SessionRunning(), e.SessionStopped(), turning)
    await store.append("s1", e.SessionImported(exported_at=1.0))
    assert await store.read(lambda conn: lineage.pending_start(conn, "s1")) is None


async def test_an_unknown_snapshot_is_reported_with_the_known_ones(store: Store) -> None:
    await begin(store)
    await store.append("s1", e.SnapshotTaken(snapshot="p1", name="first", live=False))
    with pytest.raises(NotFound) as caught:
        await store.read(lambda conn: lineage.point(conn, "s1", "second"))
    assert "first" in caught.value.hint
