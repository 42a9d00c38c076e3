"""Choosing the provider of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from hiveyard.core.errors import BadInput, ProviderUnavailable
from hiveyard.core.machines import Capabilities, Readiness, Tier, WorkspaceKind
from hiveyard.core.ports import Provider
from hiveyard.engine.placement.provider_choice import choose

ELSEWHERE = Capabilities(workspace=WorkspaceKind.CARRIED, closes_network=False, costs_money=True)


class Ground:
    """The part of a provider that the choice needs."""

    def __init__(self, name: str, tier: Tier, *, ok: bool, capabilities: Capabilities | None = None) -> None:
        self.name, self.tier = name, tier
        self.capabilities = capabilities or Capabilities()
        self._readiness = Readiness(ok=ok, detail=f"{name} says so", fix=f"fix {name}")

    async def readiness(self) -> Readiness:
        return self._readiness


def grounds(**ok: bool) -> Mapping[str, Provider]:
    tiers = {"qemu": Tier.VM, "docker": Tier.CONTAINER, "bubblewrap": Tier.NAMESPACE}
    return cast(Mapping[str, Provider], {name: Ground(name, tiers[name], ok=works) for name, works in ok.items()})


@pytest.mark.anyio
async def test_auto_takes_the_strongest_tier_that_works_and_says_why_not_a_stronger_one() -> None:
    choice = await choose("auto", grounds(bubblewrap=True, docker=True, qemu=False))
    assert choice.provider.name == "docker"
    assert "docker is the strongest that works here" in choice.why
    assert "not qemu: qemu says so" in choice.why


@pytest.mark.anyio
async def test_a_named_provider_is_never_replaced_by_another() -> None:
    with pytest.raises(ProviderUnavailable, match="qemu does not work here") as raised:
        await choose("qemu", grounds(qemu=False, docker=True))
    assert raised.value.hint == "fix qemu"


@pytest.mark.anyio
async def test_the_error_for_an_unknown_provider_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match="'vmware'") as raised:
        await choose("vmware", grounds(docker=True, bubblewrap=True))
    assert "auto, bubblewrap, docker" in raised.value.hint


@pytest.mark.anyio
async def test_the_error_without_a_working_provider_names_each_reason() -> None:
    with pytest.raises(ProviderUnavailable, match=r"not qemu: .*; not bubblewrap: "):
        await choose("auto", grounds(qemu=False, bubblewrap=False))


@pytest.mark.anyio
async def test_auto_never_takes_a_remote_provider() -> None:
    cloud = Ground("cloud", Tier.VM, ok=True, capabilities=ELSEWHERE)
    here = {**grounds(bubblewrap=True), "cloud": cast(Provider, cloud)}
    assert (await choose("auto", here)).provider.name == "bubblewrap"
    with pytest.raises(ProviderUnavailable, match="no provider works here"):
        await choose("auto", {"cloud": cast(Provider, cloud)})


@pytest.mark.anyio
@pytest.mark.parametrize("able", [Capabilities(door_url=""), ELSEWHERE], ids=["no door", "remote"])
async def test_a_provider_that_shares_no_door_or_directory_is_refused_before_it_is_tried(able: Capabilities) -> None:
    closed = Ground("cloud", Tier.VM, ok=False, capabilities=able)
    with pytest.raises(BadInput, match="cloud cannot run agents yet") as raised:
        await choose("cloud", {"cloud": cast(Provider, closed)})
    assert "qemu, docker or bubblewrap" in raised.value.hint
