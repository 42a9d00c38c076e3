"""Which provider a task runs on: the one that was named, or the strongest tier that works here, said aloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hiveyard.core.errors import BadInput, ProviderUnavailable
from hiveyard.core.machines import Tier
from hiveyard.core.ports import Provider

OWN = frozenset({"qemu", "docker", "bubblewrap"})
STRENGTH = {Tier.VM: 3, Tier.CONTAINER: 2, Tier.NAMESPACE: 1}


class Choice(NamedTuple):
    """A provider and the sentence that tells how it came to be chosen."""

    provider: Provider
    why: str


async def choose(wanted: str, providers: Mapping[str, Provider]) -> Choice:
    """The provider for `wanted` (a name or `auto`). Raises BadInput for an unknown name, ProviderUnavailable when
    it, or every one, does not work here. A named provider is never replaced by another, and one on somebody else's
    host, or that somebody else wrote, is never taken without its name."""
    if wanted == "auto":
        return await _strongest(providers)
    provider = named(wanted, providers)
    check_door(provider)
    found = await provider.readiness()
    if not found.ok:
        raise ProviderUnavailable(f"{wanted} does not work here: {found.detail}", hint=found.fix or "hv doctor")
    return Choice(provider, f"{wanted} was asked for; {found.detail}")


def named(wanted: str, providers: Mapping[str, Provider]) -> Provider:
    """The provider of that name. Raises BadInput; BadPlugin for a plugin that is broken."""
    try:
        return providers[wanted]
    except KeyError:
        raise unknown(wanted, providers) from None


def unknown(wanted: str, providers: Mapping[str, Provider]) -> BadInput:
    return BadInput(f"there is no provider {wanted!r}", hint="providers: auto, " + ", ".join(sorted(providers)))


def automatic(provider: Provider) -> bool:
    """Whether `auto` may take it: one of our own, whose machines are on this host."""
    return provider.name in OWN and not provider.capabilities.remote


def check_door(provider: Provider) -> None:
    """Raises BadInput where machines have no door, so that an agent there reaches no model, or share no directory."""
    if provider.capabilities.remote or not provider.capabilities.door_url:
        raise BadInput(
            f"{provider.name} cannot run agents yet: its machines share no directory and no door with this host, and so"
            " reach no model",
            hint="choose --provider qemu, docker or bubblewrap",
        )


async def _strongest(providers: Mapping[str, Provider]) -> Choice:
    passed_over: list[str] = []
    here = [provider for provider in providers.values() if automatic(provider)]
    for provider in sorted(here, key=lambda p: STRENGTH[p.tier], reverse=True):
        found = await provider.readiness()
        if found.ok:
            why = f"{provider.name} is the strongest that works here ({found.detail})"
            return Choice(provider, "; ".join([why, *passed_over]))
        passed_over.append(f"not {provider.name}: {found.detail}")
    raise ProviderUnavailable("no provider works here: " + "; ".join(passed_over), hint="hv doctor")
