"""Directories nested thousands deep, as a guest can make them: no operation on them fails."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import OrchestrationError
from hiveyard.core.machines import HOST, MachineSpec, Shape
from tests.engine.conftest import Yard
from tests.engine.yards import spawned
from tests.kit.test_trees import nest
from tests.support.puppet import register

pytestmark = pytest.mark.anyio
DEPTH = 1500
NEST = f"""
import os
for _ in range({DEPTH}):
    os.mkdir("d")
    os.chdir("d")
open("large", "wb").write(os.urandom(4 << 20))
"""


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_session_with_deep_directories_is_measured_and_removed(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        async with engine.sessions.guest(id) as guest:
            for place in ("/session", "~"):
                assert (await guest.run(Command(argv=("python3", "-c", NEST), cwd=place))).ok
        costs = (await engine.housekeeping.costs()).costs
        assert [cost.size > 4 << 20 for cost in costs if cost.kind == "session"] == [True]
        with pytest.raises(OrchestrationError, match="deep"):
            await engine.snapshots.take(id)
        assert list((yard.paths.sessions / id / "snapshots").iterdir()) == []
        await engine.remove(id, force=True)
        assert list(yard.paths.sessions.iterdir()) == []
        assert await engine.snapshots._r.providers["bubblewrap"].names() == set()


async def test_a_leftover_with_deep_directories_does_not_stop_the_cleanup(yard: Yard) -> None:
    async with yard.open() as engine:
        provider = engine.snapshots._r.providers["bubblewrap"]
        await provider.boot("hv-stranger", MachineSpec(image=HOST, shape=Shape()))
    stray = yard.paths.sessions / "zzzzzzzzzz" / "shared"
    stray.mkdir(parents=True)
    nest(stray, DEPTH)
    async with yard.open() as engine:
        provider = engine.snapshots._r.providers["bubblewrap"]
        with anyio.fail_after(60):
            while list(yard.paths.sessions.iterdir()) or await provider.names():  # noqa: ASYNC110
                await anyio.sleep(0.05)
