"""Budgets: a session stops when its budget is spent, and continues with a higher one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.core.events import BudgetShared, ModelCalled, SessionChanged
from hiveyard.core.usage import Usage
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.change import SessionChange
from hiveyard.engine.workspace.directory import Workspace
from tests.door.house import guest, message
from tests.engine.conftest import Yard
from tests.engine.yards import events, spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def spend(engine: Engine, id: str, dollars: float) -> None:
    called = ModelCalled(protocol="anthropic", model="m", status=200, usage=Usage(cost_usd=dollars), seconds=1.0)
    await engine.sessions._r.event_log.record(id, called)


async def asked(engine: Engine, yard: Yard, id: str) -> str:
    """Return the answer to a request at the session's door. There is no key."""
    runner = await engine.sessions.runner(id)
    assert runner.door is not None
    placeholder = Workspace(yard.paths.sessions / id).placeholder().reveal()
    async with guest(runner.door, key=placeholder) as client:
        return (await client.post("/anthropic/v1/messages", json=message())).text


async def test_a_session_with_a_spent_budget_continues_with_a_higher_one(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, name="dear", budget_usd=1.0)
        await spend(engine, id, 1.5)
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert "door.budget_spent" in await asked(engine, yard, id)
        stopped = await wait_until(engine, id, lambda view: view.status == "stopped")
        assert f"hv resume {id} --budget DOLLARS" in stopped.reason

        with pytest.raises(BadInput, match=r"\$1.50 is not more than dear has spent: \$1.5000") as refused:
            await engine.sessions.resume(id, SessionChange(budget_usd=1.5))
        assert refused.value.hint == "hv resume dear --budget 2.50"
        assert (await engine.sessions.view(id)).status == "stopped"

        await engine.sessions.resume(id, SessionChange(budget_usd=2.0))
        after = await wait_until(engine, id, lambda view: view.status == "running")
        assert after.budget_usd == 2.0
        assert "key_missing" in await asked(engine, yard, id)
        assert [event.body for event in await events(engine, id, "session.changed")] == [SessionChanged(budget_usd=2.0)]
        await engine.sessions.stop(id)


async def test_a_running_session_gets_a_higher_budget_at_once(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.resume(id, SessionChange(budget_usd=2.0))
        runner = await engine.sessions.runner(id)
        assert runner.door is not None
        assert runner.door._usage_recorder.budget.limit == 2.0
        await engine.sessions.resume(id)
        assert (await engine.sessions.view(id)).budget_usd == 2.0
        await engine.sessions.stop(id)


@pytest.mark.parametrize("left", [0.0, -1.0])
async def test_a_session_with_no_budget_left_makes_no_request_until_it_gets_more(
    yard: Yard, repo: Path, left: float
) -> None:
    """Journals of earlier versions have such sessions, made by two concurrent forks that took the same money."""
    async with yard.open() as engine:
        id = await spawned(engine, repo, budget_usd=1.0)
        await engine.sessions._r.event_log.record(id, BudgetShared(children=["x"], dollars=1.0 - left))
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert "door.budget_spent" in await asked(engine, yard, id)
        await wait_until(engine, id, lambda view: view.status == "stopped")
        await engine.sessions.resume(id, SessionChange(budget_usd=2.0))
        assert (await wait_until(engine, id, lambda view: view.status == "running")).budget_usd == 2.0
        assert "key_missing" in await asked(engine, yard, id)
        await engine.sessions.stop(id)
