"""Guests that block the end of a session: it ends all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import DiskReserve
from hiveyard.core.events import Notice
from hiveyard.engine.engine import Engine
from tests.engine.conftest import Yard
from tests.engine.yards import events, run_turn, spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def unheard(engine: Engine, yard: Yard, repo: Path) -> str:
    """Return a session whose guest has stopped the program that reports its output."""
    id = await spawned(engine, repo)
    await run_turn(engine, id, "run echo two > a.txt")
    await engine.sessions.send(id, "run pkill -STOP tail; touch /session/held")
    with anyio.fail_after(60):
        while not (yard.paths.sessions / id / "shared" / "held").exists():  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return id


async def no_machine(engine: Engine, id: str) -> None:
    view = await engine.sessions.view(id)
    assert view.status == "stopped"
    assert await engine.snapshots._r.providers["bubblewrap"].names() == set()


async def test_a_guest_that_hides_its_end_is_stopped_and_its_work_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await unheard(engine, yard, repo)
        with anyio.fail_after(60):
            await engine.sessions.stop(id)
        await no_machine(engine, id)
        assert (await engine.sessions.view(id)).reason == "stopped"
        assert await events(engine, id, "result.collected")


@pytest.mark.long("storms")
async def test_a_guest_that_hides_its_end_is_stopped_when_the_disk_fills_up(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await unheard(engine, yard, repo)
        runner = engine.sessions.find_runner(id)
        assert runner is not None
        runner.stop.request(DiskReserve("there is little left"))
        with anyio.fail_after(60):
            await runner.over.wait()
        await no_machine(engine, id)


@pytest.mark.parametrize("program", ["", "die 0"], ids=["asked", "ended by itself"])
async def test_a_guest_that_blocks_collecting_does_not_block_the_stop(yard: Yard, repo: Path, program: str) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, collect_timeout=3.0))
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        filters = (
            "git config filter.slow.clean 'touch /session/held; sleep 100000'; echo '* filter=slow' >.gitattributes"
        )
        await run_turn(engine, id, f"run {filters}; echo two > a.txt")
        if program:
            await engine.sessions.send(id, program)
            with anyio.fail_after(60):
                while not (yard.paths.sessions / id / "shared" / "held").exists():  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            await wait_until(engine, id, lambda view: view.status == "running")
        with anyio.fail_after(60):
            await engine.sessions.stop(id)
        await no_machine(engine, id)
        notices = [event.body for event in await events(engine, id, "notice")]
        assert any(isinstance(told, Notice) and "collecting took longer than 3s" in told.message for told in notices)
