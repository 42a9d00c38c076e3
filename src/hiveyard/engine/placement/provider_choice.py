"""Choose the provider of a task: the requested one, or the strongest tier that works here; and say why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hiveyard.core.errors import BadInput, ProviderUnavailable
from hiveyard.core.machines import Tier
from hiveyard.core.ports import Provider

OWN = frozenset({"qemu", "docker", "bubblewrap"})
STRENGTH = {Tier.VM: 3, Tier.CONTAINER: 2, Tier.NAMESPACE: 1}


class Choice(NamedTuple):
    """A provider and the sentence that says why it was chosen."""

    provider: Provider
    why: str


async def choose(name: str, providers: Mapping[str, Provider]) -> Choice:
    """Return the provider for `name` (a name or `auto`). Raises BadInput for an unknown name; ProviderUnavailable if
    the named provider, or none at all, works here. A named provider is never replaced by another. `auto` never chooses
    a remote provider or a plugin."""
    if name == "auto":
        return await _strongest(providers)
    provider = named(name, providers)
    check_door(provider)
    found = await provider.readiness()
    if not found.ok:
        raise ProviderUnavailable(f"{name} does not work here: {found.detail}", hint=found.fix or "hv doctor")
    return Choice(provider, f"{name} was requested; {found.detail}")


def named(name: str, providers: Mapping[str, Provider]) -> Provider:
    """Return the provider of that name. Raises BadInput; BadPlugin for a broken plugin."""
    try:
        return providers[name]
    except KeyError:
        raise unknown(name, providers) from None


def unknown(name: str, providers: Mapping[str, Provider]) -> BadInput:
    """Return the error for an unknown provider."""
    return BadInput(f"there is no provider {name!r}", hint="providers: auto, " + ", ".join(sorted(providers)))


def automatic(provider: Provider) -> bool:
    """Return whether `auto` may choose it: a built-in provider whose machines are on this host."""
    return provider.name in OWN and not provider.capabilities.costs_money


def check_door(provider: Provider) -> None:
    """Raise BadInput if machines have no door, and so reach no model, or share no directory with the host."""
    if provider.capabilities.remote or not provider.capabilities.door_url:
        raise BadInput(
            f"{provider.name} cannot run agents yet: its machines share no directory and no door with this host, so"
            " they reach no model",
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
