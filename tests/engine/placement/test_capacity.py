"""Machines never reserve more memory than there is: tasks wait, and a request that never fits is refused at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import NoMemory
from hiveyard.core.events import Event, Notice
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import SpawnRequest
from tests.engine.conftest import Yard, asked, done, told
from tests.engine.yards import spawned
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio
WAITS = "until test -e go; do sleep 0.05; done; echo x > x.txt"


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


@pytest.fixture
def small(yard: Yard) -> Yard:
    """A host with memory for one machine of the default size, or for two of half the size."""
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, memory_mib=1024, memory_total_mib=1500))
    return yard


async def until(engine: Engine, id: str, type: str) -> None:
    """Wait for an event of that type, or for the end of the task."""
    async for event in engine.follow(id, after=0):
        if event.body.type == type:
            return
        assert event.body.type != "task.completed"


def waited(events: list[Event]) -> bool:
    return any(isinstance(event.body, Notice) and "memory" in event.body.message for event in events)


async def test_a_task_waits_until_the_machine_of_another_is_removed(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        first = await engine.submit(asked(repo, WAITS))
        await until(engine, first, "task.started")
        second = await engine.submit(asked(repo, "echo y > y.txt"))
        third = await engine.submit(asked(repo, "echo z > z.txt", memory_mib=256))
        assert (await done(engine, third)).status == "completed", "it fits beside the first"
        await until(engine, second, "notice")
        assert not [event for event in await told(engine, second) if event.body.type.startswith("machine.")]
        (small.paths.sessions / first / "shared" / "repo" / "go").touch()
        reports = [await done(engine, id) for id in (first, second)]
        assert [report.status for report in reports] == ["completed", "completed"]
        assert [waited(await told(engine, id)) for id in (first, second, third)] == [False, True, False]


async def test_two_of_many_tasks_never_have_a_machine_where_one_fits(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        ids = [await engine.submit(asked(repo, "echo x > x.txt")) for _ in range(4)]
        assert [(await done(engine, id)).status for id in ids] == ["completed"] * 4
        machines = [event for id in ids for event in await told(engine, id) if event.body.type.startswith("machine.")]
    there: set[str] = set()
    for event in sorted(machines, key=lambda event: event.seq):
        if event.body.type == "machine.stopped":
            there.remove(event.session)
        else:
            there.add(event.session)
        assert len(there) <= 1
    assert not there


async def test_a_task_still_waits_for_memory_after_a_restart_and_can_be_cancelled(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        first = await engine.submit(asked(repo, WAITS))
        await until(engine, first, "task.started")
        second, third = [await engine.submit(asked(repo, "echo y > y.txt")) for _ in range(2)]
        for id in (second, third):
            await until(engine, id, "notice")
    async with small.open() as engine:
        await engine.cancel(third)
        with anyio.fail_after(60):
            assert (await done(engine, third)).status == "cancelled"
        with anyio.fail_after(20):
            while not (report := await engine.report(second)).waits_for:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert (report.status, "in line: waits until" in report.waits_for) == ("pending", True)
        (small.paths.sessions / first / "shared" / "repo" / "go").touch()
        assert [(await done(engine, id)).commits for id in (first, second)] == [1, 1]


async def test_a_task_waits_for_the_memory_of_a_session_and_says_what_frees_it(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        session = await spawned(engine, repo)
        task = await engine.submit(asked(repo, "echo x > x.txt"))
        await until(engine, task, "notice")
        assert "hv stop frees some" in (await engine.report(task)).waits_for
        await engine.sessions.stop(session)
        assert (await done(engine, task)).status == "completed"


async def test_a_task_waits_for_the_memory_of_a_kept_machine(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        first = await engine.submit(asked(repo, WAITS, keep=True))
        await until(engine, first, "task.started")
        second = await engine.submit(asked(repo, "echo y > y.txt"))
        await until(engine, second, "notice")
        (small.paths.sessions / first / "shared" / "repo" / "go").touch()
        await done(engine, first)
        with pytest.raises(NoMemory, match="1 machines use 1024 of 1500 MiB"):
            await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME))
        beside = await done(engine, await engine.submit(asked(repo, "echo z > z.txt", memory_mib=256)))
        assert beside.status == "completed", beside.error
        await engine.remove(first, force=False)
        assert (await done(engine, second)).status == "completed"


async def test_a_task_waits_for_a_machine_that_is_being_removed(small: Yard, repo: Path) -> None:
    async with small.open() as engine:
        first = await engine.submit(asked(repo, WAITS, keep=True))
        await until(engine, first, "task.started")
        second = await engine.submit(asked(repo, "echo y > y.txt"))
        await until(engine, second, "notice")
        await engine.remove(first, force=True)
        assert (await done(engine, second)).status == "completed"


@pytest.mark.parametrize("provider", ["qemu", "docker", "bubblewrap", "auto"])
async def test_a_machine_larger_than_the_host_is_refused_before_there_is_a_task(
    provider: str, yard: Yard, repo: Path
) -> None:
    async with yard.open() as engine:
        with pytest.raises(NoMemory, match="a machine of 10000000 MiB does not fit"):
            await engine.submit(asked(repo, "true", provider=provider, memory_mib=10_000_000))
        with pytest.raises(NoMemory, match="a machine of 10000000 MiB does not fit"):
            await engine.sessions.spawn(
                SpawnRequest(repo=str(repo), agent=NAME, provider=provider, memory_mib=10_000_000)
            )
        assert await engine.reports(live_only=False) == []
        assert await engine.sessions.views(over=True) == []
