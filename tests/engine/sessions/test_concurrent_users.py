"""Several users or scripts that change one session at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import HiveyardError, MachineNotReady, NoMemory, NotFound, SessionNotRunning
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import events, run_turn, spawned, spawned_with_snapshot, wait_until
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def kept(engine: Engine, repo: Path) -> str:
    """Return a session that remembers an apple, and then a pear; `early` is a snapshot from before the pear."""
    id = await spawned_with_snapshot(engine, repo)
    await run_turn(engine, id, "remember pear")
    return id


async def runs(engine: Engine, id: str) -> None:
    view = await wait_until(engine, id, lambda view: view.status in ("running", "stopped"))
    assert view.status == "running", view


async def test_rewind_and_resume_at_once_start_one_machine(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await kept(engine, repo)
        await engine.sessions.stop(id)
        async with anyio.create_task_group() as group:
            group.start_soon(engine.rewinds.rewind, id, "early")
            group.start_soon(engine.sessions.resume, id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert len(await events(engine, id, "machine.booting")) == 2
        await engine.sessions.stop(id)
        assert (await engine.sessions.view(id)).status == "stopped"
        assert engine.sessions.find_runner(id) is None


async def test_a_session_that_was_just_resumed_is_not_rewound_as_a_stopped_one(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await kept(engine, repo)
        await engine.sessions.stop(id)
        refused: list[str] = []

        async def rewind() -> None:
            try:
                await engine.rewinds.rewind(id, "early")
            except SessionNotRunning as error:
                refused.append(error.message)

        async with anyio.create_task_group() as group:
            group.start_soon(engine.sessions.resume, id)
            group.start_soon(rewind)
        assert refused == ["its machine is not ready yet"]
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple pear"
        await engine.sessions.stop(id)


async def test_a_session_stopped_during_a_rewind_is_stopped(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await kept(engine, repo)
        runner = engine.sessions.find_runner(id)
        async with anyio.create_task_group() as group:
            group.start_soon(engine.rewinds.rewind, id, "early")
            while engine.sessions.find_runner(id) is runner:
                await anyio.lowlevel.checkpoint()
            await engine.sessions.stop(id)
        assert (await engine.sessions.view(id)).status == "stopped"
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_session_is_not_resumed_while_it_is_removed(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
        refused: list[NotFound] = []

        async def resume() -> None:
            try:
                await engine.sessions.resume(id)
            except NotFound as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: engine.remove(id, force=False))
            group.start_soon(resume)
        assert len(refused) == 1
        assert engine.sessions.find_runner(id) is None
        assert await engine.sessions.views(over=True) == []
        assert not (yard.paths.sessions / id).exists()


async def test_a_session_is_not_resumed_while_it_is_exported(yard: Yard, repo: Path, tmp_path: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
        done: list[str] = []

        async def export() -> None:
            await engine.exports.export(id, tmp_path / "it.tar.gz")
            done.append("exported")

        async def resume() -> None:
            await engine.sessions.resume(id)
            done.append("resumed")

        async with anyio.create_task_group() as group:
            group.start_soon(export)
            group.start_soon(resume)
        assert done == ["exported", "resumed"]
        await engine.sessions.stop(id)


# --- snapshots that are about to be used -----------------------------------------------------------------------------


async def test_removing_a_parent_waits_for_its_children_to_start(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        provider.gate = anyio.Event()
        (child,) = (await engine.forks.fork(id, ForkRequest())).children
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: engine.remove(id, force=True))
            with anyio.move_on_after(2):
                await provider.removing.wait()
            provider.gate.set()
        await runs(engine, child)
        assert await run_turn(engine, child, "recall") == "kept: apple"
        assert provider.kept == set()
        assert not (yard.paths.sessions / id).exists()
        await engine.sessions.stop(child)


async def test_a_snapshot_is_either_forked_or_removed(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await kept(engine, repo)
        refused: list[HiveyardError] = []
        children: list[str] = []

        async def fork() -> None:
            try:
                children.extend((await engine.forks.fork(id, ForkRequest(snapshot="early"))).children)
            except NotFound as error:
                refused.append(error)

        async def remove() -> None:
            try:
                await engine.snapshots.remove(id, "early")
            except MachineNotReady as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(fork)
            group.start_soon(remove)
        assert len(refused) == 1
        for child in children:
            await runs(engine, child)
            assert await run_turn(engine, child, "recall") == "kept: apple"
        there = {path.name for path in yard.paths.sessions.iterdir()}
        assert there == {id, *children}
        for one in (id, *children):
            await engine.sessions.stop(one)


async def test_a_snapshot_is_either_used_by_a_rewind_or_removed(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await kept(engine, repo)
        refused: list[HiveyardError] = []

        async def rewind() -> None:
            try:
                await engine.rewinds.rewind(id, "early")
            except NotFound as error:
                refused.append(error)

        async def remove() -> None:
            try:
                await engine.snapshots.remove(id, "early")
            except MachineNotReady as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(rewind)
            group.start_soon(remove)
        assert len(refused) == 1
        await runs(engine, id)
        said = "kept: apple" if isinstance(refused[0], MachineNotReady) else "kept: apple pear"
        assert await run_turn(engine, id, "recall") == said
        await engine.sessions.stop(id)


# --- memory ----------------------------------------------------------------------------------------------------------


async def both(*asked: Callable[[], Awaitable[object]]) -> list[NoMemory]:
    """Make all requests at once; return the refusals."""
    refused: list[NoMemory] = []

    async def ask(one: Callable[[], Awaitable[object]]) -> None:
        try:
            await one()
        except NoMemory as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for one in asked:
            group.start_soon(ask, one)
    return refused


def with_memory(yard: Yard, mib: int) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, memory_total_mib=mib, memory_mib=2048))


async def test_only_one_of_two_concurrent_sessions_gets_the_last_memory(yard: Yard, repo: Path) -> None:
    with_memory(yard, 3000)
    spec = SpawnRequest(repo=str(repo), agent=NAME)
    async with yard.open() as engine:
        refused = await both(lambda: engine.sessions.spawn(spec), lambda: engine.sessions.spawn(spec))
        assert len(refused) == 1
        (view,) = await engine.sessions.views(over=True)
        assert [path.name for path in yard.paths.sessions.iterdir()] == [view.id]
        await wait_until(engine, view.id, lambda view: view.status == "running")
        await engine.sessions.stop(view.id)


async def test_resumed_sessions_and_children_reserve_memory_once(yard: Yard, repo: Path) -> None:
    with_memory(yard, 5000)
    async with yard.open() as engine:
        one, other = await spawned(engine, repo), await spawned(engine, repo)
        for id in (one, other):
            await engine.snapshots.take(id, "s")
        await engine.sessions.stop(other)
        begun = (
            lambda: engine.sessions.resume(other),
            lambda: engine.forks.fork(one, ForkRequest(snapshot="s")),
            lambda: engine.forks.fork(other, ForkRequest(snapshot="s")),
        )
        assert len(await both(*begun)) == 2
        for view in await engine.sessions.views(over=True):
            await engine.sessions.stop(view.id)
