"""Machines of Morph Cloud cost money: nothing is left of it that nobody knows of."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial

import anyio
import pytest

from hiveyard.core.errors import ProviderBadAnswer, ProviderTimeout
from hiveyard.machines.morph import MorphProvider
from tests.support.morph_cloud import Cloud

from .test_morph_machines import SPEC, direct

__all__ = ["direct"]
pytestmark = [pytest.mark.anyio, pytest.mark.real]


async def test_a_service_that_lists_for_a_while_what_has_ended_is_waited_for(
    direct: tuple[MorphProvider, Cloud],
) -> None:
    provider, cloud = direct
    await provider.boot("one", SPEC)
    cloud.lingers, begun = 3, len(cloud.asked)
    before = anyio.current_time()
    with anyio.fail_after(60):
        await provider.terminate("one")
    assert await provider.names() == set()
    assert sum(asked.startswith("DELETE") for asked in cloud.asked[begun:]) == 4
    assert anyio.current_time() - before >= 0.3 + 0.45


async def test_a_machine_that_never_goes_away_is_an_error_of_the_service(
    direct: tuple[MorphProvider, Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, cloud = direct
    monkeypatch.setattr("hiveyard.machines.morph.create.TEARDOWN", 1.0)
    await provider.boot("one", SPEC)
    cloud.lingers = 100
    with anyio.fail_after(60), pytest.raises(ProviderTimeout, match="one is not gone after 1s: morphvm_"):
        await provider.terminate("one")


async def _once_asked(cloud: Cloud, beginning: str, work: Callable[[], Coroutine[object, object, object]]) -> None:
    """Cancel `work` as soon as it has asked for something that begins so."""
    begun = len(cloud.asked)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            while not any(asked.startswith(beginning) for asked in cloud.asked[begun:]):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()


async def test_what_is_made_is_not_asked_for_once_more(direct: tuple[MorphProvider, Cloud]) -> None:
    """A failure of that would leave machines that nobody knows of."""
    provider, cloud = direct
    booted = await provider.boot("one", SPEC)
    assert cloud.asked[-1].endswith("/metadata")
    assert booted == await provider.get("one")
    forked = await provider.fork("one", ["two", "three"], replace(SPEC, ttl=60))
    assert not [asked for asked in cloud.asked[-2:] if asked == "GET /instance"]
    assert forked == [await provider.get("two"), await provider.get("three")]


async def test_a_snapshot_that_is_cancelled_while_it_develops_is_dropped(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    await provider.boot("one", SPEC)
    before, cloud.developing = set(cloud.snapshots), 100
    await _once_asked(cloud, "GET /snapshot/", partial(provider.snapshot, "one", "point"))
    assert set(cloud.snapshots) == before


async def test_what_is_forked_without_its_labels_is_ended(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    await provider.boot("one", SPEC)
    there, cloud.forgetful = set(cloud.instances), True
    with pytest.raises(ProviderBadAnswer, match="labels"):
        await provider.fork("one", ["two", "three"], SPEC)
    assert set(cloud.instances) == there
