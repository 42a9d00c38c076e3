"""A session's work is collected by several callers at once, and while the session is stopped."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.engine.engine import Engine
from tests.engine.conftest import Yard
from tests.engine.yards import events, run_turn, spawned
from tests.support.puppet import register

pytestmark = pytest.mark.anyio
MORE = "run head -c 3000000 /dev/urandom >>big"


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def brought_out(engine: Engine, yard: Yard, id: str) -> int:
    """Check the result of a session, and return the size of its file."""
    source = await engine.source(id)
    words = ("git", "-C", source.origin, "cat-file", "-s", f"{source.head}:big")
    size = (await anyio.run_process(words)).stdout
    bundle = yard.paths.sessions / id / "result" / "work.bundle"
    await anyio.run_process(("git", "-C", source.origin, "bundle", "verify", str(bundle)))
    assert source.patch is not None
    assert sorted(file.name for file in bundle.parent.iterdir()) == ["changes.patch", "work.bundle"]
    return int(size)


async def test_concurrent_collects_all_get_the_complete_work(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, MORE)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(engine.sessions.collect, id)
        assert await brought_out(engine, yard, id) == 3_000_000
        await engine.sessions.stop(id)


async def test_a_session_that_is_stopped_during_a_collect_keeps_its_work(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        for size in (3_000_000, 6_000_000):
            await run_turn(engine, id, MORE)
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(engine.sessions.collect, id)
                group.start_soon(engine.sessions.stop, id)
                group.start_soon(engine.sessions.collect, id)
            assert not [event for event in await events(engine, id, "notice") if "not collected" in str(event.body)]
            assert await brought_out(engine, yard, id) == size
            assert (await engine.sessions.view(id)).status == "stopped"
            await engine.sessions.resume(id)
        await engine.sessions.stop(id)


async def test_a_reader_keeps_the_old_bundle_while_a_new_one_is_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, MORE)
        await engine.sessions.collect(id)
        result = yard.paths.sessions / id / "result"
        with (result / "work.bundle").open("rb") as reader:
            await run_turn(engine, id, MORE)
            await engine.sessions.collect(id)
            assert len(reader.read()) < 3_500_000
        assert (result / "work.bundle").stat().st_size > 5_900_000
        await engine.sessions.stop(id)
