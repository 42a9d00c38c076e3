"""What is frozen is journaled as frozen, or goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import StoreUnusable
from hiveyard.core.events import AnyBody
from hiveyard.engine.ledger import Ledger
from tests.engine.conftest import Yard
from tests.engine.yards import spawned, told
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


class _Full(Ledger):
    """A ledger on a full disk."""

    async def record(self, session: str, *bodies: AnyBody, turn: int | None = None) -> None:
        raise StoreUnusable("the disk is full")


async def test_a_machine_whose_pause_cannot_be_journaled_goes_on(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        whole = engine.sessions._r
        engine.sessions._r = replace(whole, ledger=_Full(whole.ledger.store, whole.ledger.clock))
        with pytest.raises(StoreUnusable, match="full"):
            await engine.sessions.pause(id)
        engine.sessions._r = whole
        with anyio.fail_after(60):
            assert await told(engine, id, "remember apple") == "done: remember apple"
        await engine.sessions.pause(id)
        assert (await engine.sessions.view(id)).activity == "paused"
        await engine.sessions.unpause(id)
        await engine.sessions.stop(id)
