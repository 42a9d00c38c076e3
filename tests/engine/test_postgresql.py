"""The engine with its journal in PostgreSQL: a task, its session, and the next daemon.

`make long PART=postgres` runs all tests of the engine so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.store.settings import StoreSettings
from tests.engine.conftest import Yard, done
from tests.engine.yards import answer, run_turn
from tests.store.postgres_server import Server
from tests.support.live_puppet import NAME, register

pytestmark = pytest.mark.anyio


async def test_a_task_and_its_session_and_the_next_daemon(yard: Yard, repo: Path, postgres_server: Server) -> None:
    register()
    name = f"hv{uuid4().hex[:12]}"
    yard.settings = replace(yard.settings, store=StoreSettings(url=postgres_server.create_database(name)))
    async with yard.open() as engine:
        id = await engine.submit(TaskRequest(repo=str(repo), prompt="remember apple", agent=NAME))
        assert (await done(engine, id)).status == "completed"
        turn = await engine.sessions.send(id, "recall")
        assert await answer(engine, id, turn) == "kept: apple"
    async with yard.open() as engine:
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)
        await engine.remove(id, force=False)
    assert not yard.paths.database.exists()
    postgres_server.drop_database(name)
