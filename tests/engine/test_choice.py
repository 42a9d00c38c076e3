"""Which provider a task runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from hiveyard.core.errors import BadInput, ProviderUnavailable
from hiveyard.core.machines import Readiness, Tier
from hiveyard.core.ports import Provider
from hiveyard.engine.choice import choose


class Ground:
    """As much of a provider as choosing needs."""

    def __init__(self, name: str, tier: Tier, *, ok: bool) -> None:
        self.name, self.tier = name, tier
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
async def test_an_unknown_provider_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="'vmware'") as raised:
        await choose("vmware", grounds(docker=True, bubblewrap=True))
    assert "auto, bubblewrap, docker" in raised.value.hint


@pytest.mark.anyio
async def test_no_provider_at_all_names_each_reason() -> None:
    with pytest.raises(ProviderUnavailable, match=r"not qemu: .*; not bubblewrap: "):
        await choose("auto", grounds(qemu=False, bubblewrap=False))
