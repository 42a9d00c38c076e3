"""What a new daemon does with the machines of sessions that run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.conftest import Yard
from tests.engine.remembering import Remembering, at_work
from tests.engine.yards import events, spawned, told, until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_machine_that_lives_is_taken_up_where_none_could_be_made(yard: Yard, repo: Path) -> None:
    async with at_work(yard, Remembering(yard)) as engine:
        id = await spawned(engine, repo)
        await told(engine, id, "remember apple")
    async with at_work(yard, Remembering(yard, full=True)) as engine:
        assert await told(engine, id, "recall") == "kept: apple"
        assert (await engine.sessions.view(id)).status == "running"
        assert len(await events(engine, id, "machine.booting")) == 1
        await engine.sessions.stop(id)


async def test_a_paused_machine_is_taken_up_where_none_could_be_made(yard: Yard, repo: Path) -> None:
    async with at_work(yard, Remembering(yard)) as engine:
        id = await spawned(engine, repo)
        await told(engine, id, "remember apple")
        await engine.sessions.pause(id)
    async with at_work(yard, Remembering(yard, full=True)) as engine:
        assert (await engine.sessions.view(id)).status == "paused"
        await engine.sessions.unpause(id)
        assert await told(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_machine_that_went_down_meanwhile_is_told_at_once(yard: Yard, repo: Path) -> None:
    provider = Remembering(yard)
    async with at_work(yard, provider) as engine:
        id = await spawned(engine, repo)
    await provider.terminate(f"hv-{id}")
    async with at_work(yard, Remembering(yard, full=True)) as engine:
        view = await until(engine, id, lambda view: view.status == "stopped")
        assert "went down while nobody was watching" in view.reason
