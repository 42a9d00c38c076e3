"""One line for tasks and sessions: who is served, in which order, and what the others are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.placement.admission import PATIENCE, Admission
from hiveyard.engine.settings import EngineSettings
from hiveyard.kit.clock import SystemClock
from hiveyard.store import views
from hiveyard.store.database import open_store

pytestmark = pytest.mark.anyio


class MovedClock(SystemClock):
    """A clock that can be set forward."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Line:
    """A line for places, with a journal of its own and room for two tasks and 1,000 MiB."""

    def __init__(self, event_log: EventLog, clock: MovedClock) -> None:
        self.event_log = event_log
        self.clock = clock
        self.admission = Admission(event_log, EngineSettings(max_tasks=2, memory_total_mib=1000))
        self.placed: list[str] = []

    async def create(self, id: str, mib: int, *, is_task: bool = False) -> None:
        request = {"repo": "/r", "prompt": "p", "memory_mib": mib}
        created = e.SessionCreated(slug=id, repo="/r", agent="command", request=None if is_task else request)
        await self.event_log.record(id, *([e.TaskCreated(slug=id, request=request)] if is_task else []), created)

    async def claim(self, id: str, *, is_task: bool = False) -> None:
        session = await self.event_log.read(lambda conn: views.session(conn, id))
        await self.admission.claim(session, session.created_at, [], is_task=is_task)
        self.placed.append(id)

    async def end(self, id: str, *, is_task: bool = False) -> None:
        ended = [e.TaskFailed(failure=e.Failure(code="x", message="x"))] if is_task else []
        await self.event_log.record(id, e.SessionStopped(reason="ended"), *ended)

    async def until(self, *placed: str) -> None:
        with anyio.fail_after(20):
            while self.placed != list(placed):  # noqa: ASYNC110
                await anyio.sleep(0.01)

    async def until_waiting(self, *ids: str) -> None:
        with anyio.fail_after(20):
            while not self.admission.waiting().keys() >= set(ids):  # noqa: ASYNC110
                await anyio.sleep(0.01)


@asynccontextmanager
async def open_line(path: Path) -> AsyncIterator[tuple[Line, anyio.abc.TaskGroup]]:
    clock = MovedClock()
    async with open_store(path / "journal.db", clock=clock) as store, anyio.create_task_group() as group:
        line = Line(EventLog(store, clock), clock)
        group.start_soon(line.admission.run)
        yield line, group
        group.cancel_scope.cancel()


async def test_tasks_are_served_in_the_order_of_their_requests(tmp_path: Path) -> None:
    async with open_line(tmp_path) as (line, group):
        for id in ("a", "b", "c", "d"):
            await line.create(id, 100, is_task=True)
        group.start_soon(lambda: line.claim("a", is_task=True))
        await line.until("a")
        group.start_soon(lambda: line.claim("b", is_task=True))
        await line.until("a", "b")
        # The later request claims first, as it can happen after a restart.
        group.start_soon(lambda: line.claim("d", is_task=True))
        group.start_soon(lambda: line.claim("c", is_task=True))
        await line.until_waiting("c", "d")
        waiting = line.admission.waiting()
        assert waiting["c"] == "number 1 in line: waits for one of the 2 places for tasks ([engine] max_tasks)"
        assert waiting["d"].startswith("number 2 in line")
        await line.end("a", is_task=True)
        await line.until("a", "b", "c")
        await line.end("b", is_task=True)
        await line.until("a", "b", "c", "d")
        assert line.admission.waiting() == {}


async def test_a_small_session_passes_a_large_one_but_not_after_ten_minutes(tmp_path: Path) -> None:
    async with open_line(tmp_path) as (line, group):
        for id, mib in (("first", 600), ("large", 800), ("small", 300), ("late", 100), ("last", 100)):
            await line.create(id, mib)
        await line.claim("first")
        group.start_soon(line.claim, "large")
        await line.until_waiting("large")
        group.start_soon(line.claim, "small")
        await line.until("first", "small")
        line.clock.ahead = PATIENCE + 60
        group.start_soon(line.claim, "late")
        await anyio.sleep(0.2)
        await line.end("small")
        await anyio.sleep(0.2)
        assert line.placed == ["first", "small"], "all wait behind the large one"
        await line.end("first")
        await line.until("first", "small", "large", "late")
        assert "800 MiB" in next(event.message for event in await notices(line, "large"))


async def test_tasks_and_sessions_wait_for_each_other_in_one_line(tmp_path: Path) -> None:
    async with open_line(tmp_path) as (line, group):
        await line.create("first", 900)
        await line.create("session", 900)
        await line.create("task", 900, is_task=True)
        await line.claim("first")
        group.start_soon(lambda: line.claim("task", is_task=True))
        group.start_soon(line.claim, "session")
        await line.until_waiting("session", "task")
        await line.end("first")
        await line.until("first", "session")
        await line.end("session")
        await line.until("first", "session", "task")


async def test_one_that_gives_up_leaves_the_line(tmp_path: Path) -> None:
    async with open_line(tmp_path) as (line, _):
        await line.create("first", 900)
        await line.create("other", 900)
        await line.claim("first")
        with anyio.move_on_after(0.2):
            await line.claim("other")
        assert line.admission.waiting() == {}
        await line.end("first")
        await anyio.sleep(0.1)
        assert (await line.event_log.read(lambda conn: views.session(conn, "other"))).phase == "created"


async def notices(line: Line, id: str) -> list[e.Notice]:
    from hiveyard.store import journal

    found = await line.event_log.read(lambda conn: journal.events(conn, session=id))
    return [event.body for event in found if isinstance(event.body, e.Notice)]


async def test_one_that_cannot_be_served_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with open_line(tmp_path) as (line, group):
        for id in ("blocker", "cancelled", "next"):
            await line.create(id, 900, is_task=id == "cancelled")
        await line.claim("blocker")
        place = e.TaskAssigned(provider="bubblewrap", tier="namespace", machine="hv-cancelled")
        refused: list[IllegalMove] = []

        async def claim_of_a_task_that_was_cancelled() -> None:
            session = await line.event_log.read(lambda conn: views.session(conn, "cancelled"))
            try:
                await line.admission.claim(session, session.created_at, [place], is_task=True)
            except IllegalMove as error:
                refused.append(error)

        group.start_soon(claim_of_a_task_that_was_cancelled)
        group.start_soon(line.claim, "next")
        await line.until_waiting("cancelled", "next")
        await line.event_log.record("cancelled", e.TaskCancelled())
        await line.end("blocker")
        await line.until("blocker", "next")
        assert len(refused) == 1
