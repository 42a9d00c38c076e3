"""Snapshots and images that sessions depend on, and turn snapshots that a killed daemon did not take."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import NoSuchSnapshot, SessionInUse
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.session_runner import SessionRunner
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import events, run_turn, spawned, spawned_with_snapshot, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_rewind_to_an_unusable_snapshot_leaves_the_session_unchanged(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "run echo late > late; echo $$ > pid")
        provider.kept.clear()
        with pytest.raises(NoSuchSnapshot):
            await engine.rewinds.rewind(id, "early")
        assert (yard.paths.sessions / id / "shared" / "repo" / "late").exists()
        assert not await events(engine, id, "session.rewound")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_rewinding_a_paused_session_needs_force(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned_with_snapshot(engine, repo)
        await engine.sessions.pause(id)
        with pytest.raises(SessionInUse, match="is paused") as refused:
            await engine.rewinds.rewind(id, "early")
        assert "hv unpause" in refused.value.hint
        await engine.rewinds.rewind(id, "early", force=True)
        await wait_until(engine, id, lambda view: view.status == "running" and view.activity != "paused")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_an_image_that_live_snapshots_need_is_not_removed(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        point = await engine.snapshots.take(id, "green")
        slug = (await engine.sessions.view(id)).name
        assert await engine.snapshots.live_snapshots_of(point.taken.image) == [f"green of {slug}"]
        assert await engine.snapshots.live_snapshots_of("another") == []
        await engine.snapshots.remove(id, "green")
        assert await engine.snapshots.live_snapshots_of(point.taken.image) == []
        await engine.sessions.stop(id)


async def test_the_next_daemon_takes_a_missing_turn_snapshot(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        _deaf(engine)
        id = await spawned(engine, repo, snapshots="turns")
        await run_turn(engine, id, "remember apple")
        assert await engine.snapshots.list(id) == []
    for _ in range(2):  # the daemon after that takes no second one
        async with yard.open() as engine:
            await _taken(engine, id, 1)
            assert [one.name for one in await engine.snapshots.list(id)] == ["turn-1"]
    async with yard.open() as engine:
        await run_turn(engine, id, "remember pear")
        await _taken(engine, id, 2)
        assert [one.name for one in await engine.snapshots.list(id)] == ["turn-1", "turn-2"]
        await engine.sessions.stop(id)


def _deaf(engine: Engine) -> None:
    """Ignore the ends of turns, as if the daemon died at that moment."""

    def nothing(runner: SessionRunner) -> None:
        return

    engine.sessions.on_turn_over = nothing


async def _taken(engine: Engine, id: str, count: int) -> None:
    await wait_until(engine, id, lambda view: view.status == "running")
    with anyio.fail_after(30):
        while len(await events(engine, id, "snapshot.taken")) < count:  # noqa: ASYNC110
            await anyio.sleep(0.05)
