"""A new daemon and the machines of running sessions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import SessionStopAsked, SnapshotTaken
from hiveyard.core.machines import Machine
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import events, run_turn, spawned, spawned_with_snapshot, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_live_machine_is_found_again_when_no_new_one_could_be_created(yard: Yard, repo: Path) -> None:
    async with engine_with(yard, FakeLiveSnapshots(yard)) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
    async with engine_with(yard, FakeLiveSnapshots(yard, full=True)) as engine:
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert (await engine.sessions.view(id)).status == "running"
        assert len(await events(engine, id, "machine.booting")) == 1
        await engine.sessions.stop(id)


async def test_a_paused_machine_is_found_again_when_no_new_one_could_be_created(yard: Yard, repo: Path) -> None:
    async with engine_with(yard, FakeLiveSnapshots(yard)) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await engine.sessions.pause(id)
    async with engine_with(yard, FakeLiveSnapshots(yard, full=True)) as engine:
        assert (await engine.sessions.view(id)).status == "paused"
        await engine.sessions.unpause(id)
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_machine_that_died_meanwhile_is_reported_at_once(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
    await provider.terminate(f"hv-{id}")
    async with engine_with(yard, FakeLiveSnapshots(yard, full=True)) as engine:
        view = await engine.sessions.view(id)
        assert (view.status, "stopped while no daemon was running" in view.reason) == ("stopped", True)


async def test_resume_waits_until_it_is_known_whether_the_machine_is_alive(yard: Yard, repo: Path) -> None:
    """Also if the provider is so slow that a new daemon serves requests before it knows."""
    provider = Slow(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
    await provider.terminate(f"hv-{id}")
    slow = Slow(yard)
    slow.known = anyio.Event()
    async with engine_with(yard, slow) as engine, anyio.create_task_group() as group:
        assert (await engine.sessions.view(id)).status == "running", "what was known last"
        group.start_soon(engine.sessions.resume, id)
        await anyio.sleep(0.1)
        slow.known.set()
        # The first machine only brings out the work of the lost one.
        await wait_until(engine, id, lambda view: view.status == "running" and len(slow.booted) == 2)
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_uncollected_work_of_a_lost_machine_is_reported_until_it_is_collected(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo pear > fruit.txt")
    await provider.terminate(f"hv-{id}")
    async with engine_with(yard, FakeLiveSnapshots(yard, full=True)) as engine:  # no machine can bring it out
        await wait_until(engine, id, lambda view: view.status == "stopped")
        source = await engine.source(id)
        assert source.head is None
        assert f"{yard.paths.sessions / id / 'shared'}; hv resume" in source.notice
        assert (await engine.comparisons.compare([id]))[0].notice == source.notice
    async with engine_with(yard, FakeLiveSnapshots(yard)) as engine:
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        await engine.sessions.stop(id)
        source = await engine.source(id)
        assert (source.diffstat.files, source.notice) == (1, "")


class Slow(FakeLiveSnapshots):
    """A provider that takes time to find out which of its machines are alive."""

    known: anyio.Event | None = None

    async def get(self, name: str) -> Machine:
        if self.known is not None:
            await self.known.wait()
        return await super().get(name)


def with_memory(yard: Yard, mib: int) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, memory_mib=mib))


async def test_a_live_snapshot_is_started_in_machines_of_its_size(yard: Yard, repo: Path) -> None:
    with_memory(yard, 768)
    before = FakeLiveSnapshots(yard)
    async with engine_with(yard, before) as engine:
        id = await spawned_with_snapshot(engine, repo)
    with_memory(yard, 4096)
    provider = FakeLiveSnapshots(yard, before=before)
    async with engine_with(yard, provider) as engine:
        # A snapshot that is taken now is also of the old machine.
        await run_turn(engine, id, "remember pear")
        late = await engine.snapshots.take(id, "late")
        assert isinstance(late.taken, SnapshotTaken)
        assert late.taken.shape is not None
        assert late.taken.shape.memory_mib == 768
        (child,) = (await engine.forks.fork(id, ForkRequest(snapshot="early"))).children
        await wait_until(engine, child, lambda view: view.status == "running")
        await engine.rewinds.rewind(id, "late")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert [spec.shape.memory_mib for spec in provider.booted] == [768, 768]
        # One that begins anew is as large as it is asked for; a child was asked for as large as it is.
        for one in (id, child):
            await engine.sessions.stop(one)
            await engine.sessions.resume(one)
            await wait_until(engine, one, lambda view: view.status == "running")
        assert [spec.shape.memory_mib for spec in provider.booted[2:]] == [4096, 768]
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_a_stop_before_a_kill_is_done_by_the_next_daemon(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine._r.event_log.record(id, SessionStopAsked())
    async with yard.open() as engine:
        view = await wait_until(engine, id, lambda view: view.status == "stopped")
        assert (view.reason, view.error) == ("stopped", None)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
    async with yard.open() as engine:
        assert (await engine.sessions.view(id)).status == "running", "the stop was carried out before"
        await engine.sessions.stop(id)


async def test_another_machine_brings_out_the_work_of_a_lost_one(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo pear > fruit.txt")
        await engine._r.providers["bubblewrap"].terminate(f"hv-{id}")
        view = await wait_until(engine, id, lambda view: view.status == "stopped")
        assert view.reason == f"machine hv-{id} died"
        result = await engine.source(id)
        assert (result.commits, result.notice) == (1, "")
        assert await engine._r.providers["bubblewrap"].names() == set()
