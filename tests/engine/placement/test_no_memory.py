"""If the memory of a machine cannot be saved, its session is saved and forked as files and conversation."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.core.events import Notice
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import events, run_turn, spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_snapshot_without_memory_has_files_and_conversation_and_reports_it(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        provider.secretive = True
        await engine.snapshots.take(id, "early")
        await run_turn(engine, id, "remember pear")
        (snapshot,) = await engine.snapshots.list(id)
        assert not snapshot.live
        notices = [event.body for event in await events(engine, id, "notice")]
        assert [body.message for body in notices if isinstance(body, Notice)] == [
            "the memory was not saved: nobody may read it"
        ]
        await engine.rewinds.rewind(id, "early")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_children_resume_the_conversation_and_report_it(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        provider.secretive = True
        forked = await engine.forks.fork(id, ForkRequest(count=1))
        assert not forked.live
        assert "resumes its conversation" in forked.notice
        (child,) = forked.children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert await run_turn(engine, child, "recall") == "kept: apple"
        assert not provider.kept
        for one in (id, child):
            await engine.sessions.stop(one)
