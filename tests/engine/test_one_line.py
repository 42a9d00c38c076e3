"""Tasks and sessions mixed, on fewer places than there are of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import Event
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import SpawnRequest
from tests.engine.conftest import Yard, asked, done
from tests.engine.yards import wait_until
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("count", [9, pytest.param(60, marks=pytest.mark.long("storms"))])
async def test_mixed_tasks_and_sessions_all_end_and_never_take_more_than_there_is(
    count: int, yard: Yard, repo: Path
) -> None:
    register()
    limits = replace(yard.settings.engine, memory_mib=512, memory_total_mib=1600, max_tasks=2)
    yard.settings = replace(yard.settings, engine=limits)
    async with yard.open() as engine:
        async with anyio.create_task_group() as group:
            for number in range(count):
                if number % 3:
                    group.start_soon(run_task, engine, repo)
                else:
                    group.start_soon(run_session, engine, repo, str(number))
        events = await all_events(engine)
    places = {"task": 0, "all": 0}
    tasks = {event.session for event in events if event.body.type == "task.created"}
    for event in events:
        step = {"session.preparing": 1, "session.finished": -1, "session.stopped": -1}.get(event.body.type, 0)
        places["all"] += step
        places["task"] += step if event.session in tasks else 0
        assert places["task"] <= 2
        assert places["all"] <= 3
    assert places == {"task": 0, "all": 0}
    created, served = order(events, "task.created", tasks), order(events, "session.preparing", tasks)
    moved = [abs(created.index(id) - at) for at, id in enumerate(served)]
    assert max(moved) <= 3, "first come, first served, but for those that come to the line at once"


async def run_task(engine: Engine, repo: Path) -> None:
    report = await done(engine, await engine.submit(asked(repo, "echo x > x.txt")))
    assert report.status == "completed", report.error


async def run_session(engine: Engine, repo: Path, name: str) -> None:
    asked_for = SpawnRequest(repo=str(repo), agent=NAME, name=f"s{name}", wait=True)
    id = await engine.sessions.spawn(asked_for)
    await wait_until(engine, id, lambda view: view.status == "running")
    await engine.sessions.stop(id)


async def all_events(engine: Engine) -> list[Event]:
    found: list[Event] = []
    while page := await engine.events(None, after=found[-1].seq if found else 0, limit=1000):
        found += page
    return found


def order(events: list[Event], type: str, sessions: set[str]) -> list[str]:
    return [event.session for event in events if event.body.type == type and event.session in sessions]
