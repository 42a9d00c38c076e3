"""A machine of Morph Cloud ends when its time is over, whatever was done with it before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hiveyard.core.machines import MachineStatus
from hiveyard.machines.morph import MorphProvider, MorphSettings
from tests.support.morph_cloud import Cloud

from .test_morph_machines import SPEC, clouded

pytestmark = pytest.mark.anyio
STOPS = replace(SPEC, ttl=3600, ttl_action="stop")


@pytest.fixture
async def direct() -> AsyncIterator[tuple[MorphProvider, Cloud]]:
    async with clouded("direct") as both:
        yield both


async def over(provider: MorphProvider, cloud: Cloud, name: str) -> MachineStatus:
    """The status of a machine whose time is over."""
    cloud.machine(name).ttl["ttl_expire_at"] = 0
    await provider.list()
    return (await provider.get(name)).status


async def test_a_machine_that_is_to_be_stopped_is_so_after_a_pause(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    await provider.boot("one", STOPS)
    await provider.pause("one")
    paused = await provider.get("one")
    assert (paused.status, paused.ttl_action) == (MachineStatus.READY, "stop")
    for _ in range(2):
        await provider.resume("one")
    assert (await provider.get("one")).ttl_action == "stop"
    assert await over(provider, cloud, "one") is MachineStatus.STOPPED


async def test_a_fork_has_a_time_of_its_own(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    await provider.boot("one", replace(SPEC, ttl=3600, ttl_action="pause"))
    await provider.fork("one", ["two"], STOPS)
    assert (await provider.get("two")).ttl_action == "stop"
    assert await over(provider, cloud, "two") is MachineStatus.STOPPED
    await provider.boot("three", STOPS)
    await provider.fork("three", ["four"], replace(SPEC, ttl=3600, ttl_action="pause"))
    assert await over(provider, cloud, "four") is MachineStatus.READY


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example/api",
        "http://127.0.0.1@evil.example",
        "https://",
        "https://[::1",
        "ftp://localhost",
        "localhost",
    ],
)
def test_a_key_is_sent_to_no_host_that_only_begins_like_this_one(url: str) -> None:
    with pytest.raises(ValueError, match="https://"):
        MorphSettings(url=url)


@pytest.mark.parametrize("url", ["http://localhost:8000/api", "http://127.0.0.2", "http://[::1]:8000"])
def test_this_host_needs_no_https(url: str) -> None:
    assert MorphSettings(url=url).url == url
