"""The journal is compared with the machines that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.core.machines import HOST, MachineSpec
from tests.engine.conftest import Yard
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import spawned
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


class Listing(FakeLiveSnapshots):
    """A provider that may fail to list its machines."""

    silent = False

    async def names(self) -> set[str]:
        if self.silent:
            raise ProviderUnavailable("it does not answer")
        return await super().names()


async def test_a_machine_that_nothing_needs_is_removed_when_it_is_seen_twice(yard: Yard, repo: Path) -> None:
    provider = Listing(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo)
        await provider.boot("hv-of-nobody", MachineSpec(image=HOST))
        first = await engine.reconciler.run()
        assert (first.removed, first.suspected) == ([], ["hv-of-nobody"])
        provider.silent = True
        blind = await engine.reconciler.run()
        assert provider.name in blind.silent and blind.removed == []
        provider.silent = False
        assert (await engine.reconciler.run()).suspected == ["hv-of-nobody"], "it was not seen twice in a row"
        assert (await engine.reconciler.run()).removed == ["hv-of-nobody"]
        assert await provider.names() == {f"hv-{id}"}
        assert (await engine.sessions.view(id)).status == "running"
        await engine.sessions.stop(id)
