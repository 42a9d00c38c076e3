"""Pauses: a paused machine is journaled as paused or continues; and operations that exclude each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hiveyard.core.commands import Command, Result
from hiveyard.core.errors import GuestDisconnected, MachineLost, NoSpace, SessionNotRunning, StoreUnusable
from hiveyard.core.ports import Guest
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import FullDiskLog, events, run_turn, spawned
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_machine_whose_pause_cannot_be_journaled_continues(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        whole = engine.sessions._r
        engine.sessions._r = replace(whole, event_log=FullDiskLog(whole.event_log.store, whole.event_log.clock))
        with pytest.raises(StoreUnusable, match="full"):
            await engine.sessions.pause(id)
        engine.sessions._r = whole
        with anyio.fail_after(60):
            assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        await engine.sessions.pause(id)
        assert (await engine.sessions.view(id)).activity == "paused"
        await engine.sessions.unpause(id)
        await engine.sessions.stop(id)


class _Dying(FakeLiveSnapshots):
    """A provider whose machines end while they are paused."""

    async def resume(self, name: str) -> None:
        await self.terminate(name)
        raise MachineLost(f"machine {name} is gone", machine=name)


async def test_a_paused_session_whose_machine_died_can_be_stopped(yard: Yard, repo: Path) -> None:
    async with engine_with(yard, _Dying(yard)) as engine:
        id = await spawned(engine, repo)
        await engine.sessions.pause(id)
        with anyio.fail_after(60):
            await engine.sessions.stop(id)
        assert (await engine.sessions.view(id)).status == "stopped"


class _Breaking(FakeLiveSnapshots):
    """A provider whose connection to a machine breaks once."""

    left = 2

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        async with super().guest(name) as guest:
            if self.left:
                self.left -= 1
                await guest.run(Command(argv=("true",)))
                raise GuestDisconnected(f"the connection to machine {name} broke", machine=name)
            yield guest


async def test_a_session_whose_connection_broke_continues_in_the_same_machine(yard: Yard, repo: Path) -> None:
    provider = _Breaking(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        assert (provider.left, len(provider.booted)) == (0, 1)
        await engine.sessions.stop(id)


class _Interrupting(FakeLiveSnapshots):
    """A provider whose connection to a machine breaks once, while a prompt is sent."""

    left = 1

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        async with super().guest(name) as guest:
            whole = guest.run

            async def run(command: Command, **more: Any) -> Result:
                if self.left and "puppet" in (command.argv or ()):
                    self.left -= 1
                    raise GuestDisconnected(f"the connection to machine {name} broke", machine=name)
                return await whole(command, **more)

            guest.run = run  # type: ignore[method-assign]
            yield guest


async def test_a_prompt_that_was_cut_off_is_sent_again(yard: Yard, repo: Path) -> None:
    provider = _Interrupting(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        assert (provider.left, len(provider.booted)) == (0, 1)
        assert [event.turn for event in await events(engine, id, "turn.ended")] == [1]
        await engine.sessions.stop(id)


async def test_a_session_that_is_being_stopped_is_not_paused(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine, anyio.create_task_group() as group:
        id = await spawned(engine, repo)
        runner = await engine.sessions.runner(id)
        with anyio.fail_after(60):
            async with engine.sessions._r.collect_lock(id):  # its work cannot be collected yet
                group.start_soon(engine.sessions.stop, id)
                while runner.stop.reason is None:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                with pytest.raises(SessionNotRunning, match="being stopped"):
                    await engine.sessions.pause(id)
            await runner.over.wait()
        assert (await engine.sessions.view(id)).status == "stopped"


async def test_a_session_stopped_before_its_repository_was_pushed_can_be_resumed(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME))
        await engine.sessions.stop(id)
        assert (await engine.sessions.row(id)).base is None
        await engine.sessions.resume(id)
        with anyio.fail_after(60):
            assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        await engine.sessions.stop(id)


async def test_copies_keep_the_disk_reserve_free(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo much > much")
        await engine.snapshots.take(id, "early")
        await engine.sessions.stop(id)
        whole = engine.forks._r
        engine.forks._r = replace(whole, settings=replace(whole.settings, disk_reserve_mib=1 << 40))
        with pytest.raises(NoSpace, match="no space to copy") as refused:
            await engine.forks.fork(id, ForkRequest(snapshot="early"))
        assert "disk_reserve_mib" in refused.value.hint
        assert [one.name for one in yard.paths.sessions.iterdir()] == [id]


async def test_a_fork_waits_while_the_parents_work_is_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine, anyio.create_task_group() as group:
        id = await spawned(engine, repo)
        async with engine.sessions._r.collect_lock(id):
            group.start_soon(engine.forks.fork, id, ForkRequest())
            await anyio.sleep(1)
            assert [one.name for one in yard.paths.sessions.iterdir()] == [id]
    async with yard.open() as engine:
        for child in yard.paths.sessions.iterdir():
            await engine.sessions.stop(child.name)
