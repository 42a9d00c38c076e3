"""Providers that others wrote: programs of the settings file (`[external.NAME]`), and plugins."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import anyio

from hiveyard import plugins
from hiveyard.core.errors import BadPlugin, BadSetting
from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Provider
from hiveyard.door.keys import VARIABLES
from hiveyard.engine.placement.provider_choice import unknown
from hiveyard.machines.external import ExternalProvider
from hiveyard.machines.external.program import PLAIN
from hiveyard.machines.external.settings import ExternalProgram
from hiveyard.paths import Paths

log = logging.getLogger("hiveyard.daemon")
_UNHEARD = Capabilities(door_url="", remote=True)
"""What is taken for true of a program that cannot be asked: no agent gets there, and nobody gets it by default."""
_GREETING = 5.0  # seconds in which programs may tell what they can do, before anybody asks them for something


class Providers(dict[str, Provider]):
    """By name. One that is broken raises its BadPlugin when it is asked for, and holds up nobody else; one that is not
    there (any more, while a session of it is) raises BadInput."""

    def __init__(self, own: Mapping[str, Provider]) -> None:
        super().__init__(own)
        self.broken: dict[str, BadPlugin] = {}

    def __missing__(self, name: str) -> Provider:
        if name in self.broken:
            error = self.broken[name]
            raise BadPlugin(error.message, hint=error.hint)
        raise unknown(name, self)


@asynccontextmanager
async def with_external(
    own: Mapping[str, Provider], here: Paths, programs: Mapping[str, ExternalProgram], environment: Mapping[str, str]
) -> AsyncIterator[Providers]:
    """Our own providers and those of others, whose programs run for as long as the block lasts. Raises BadSetting,
    BadInput for a name that cannot be, BadPlugin for one that is taken."""
    found = Providers(own)
    _add_plugins(found, here)
    external = [_external(name, program, found, here, environment) for name, program in programs.items()]
    found.update({provider.name: provider for provider in external})
    try:
        with anyio.move_on_after(_GREETING):
            async with anyio.create_task_group() as group:
                for provider in external:
                    group.start_soon(provider.readiness, name=f"greet {provider.name}")
        yield found
    finally:
        with anyio.CancelScope(shield=True):
            for provider in external:
                await provider.aclose()


def _external(
    name: str, program: ExternalProgram, taken: Providers, here: Paths, environment: Mapping[str, str]
) -> ExternalProvider:
    if name in taken or name in taken.broken or name == "auto":
        raise BadSetting(f"{here.config}: external.{name}: there is a provider of that name already")
    if keys := set(program.env) & set(VARIABLES.values()):
        raise BadSetting(f"{here.config}: external.{name}: {', '.join(sorted(keys))} stays with the door")
    env = {key: environment[key] for key in (*PLAIN, *program.env) if key in environment}
    return ExternalProvider(name, program.command, here.machines / name, env=env, settings=program, unheard=_UNHEARD)


def _add_plugins(found: Providers, here: Paths) -> None:
    own = ("auto", *found)
    for name in plugins.names("hiveyard.providers", own):
        try:
            made = plugins.make("hiveyard.providers", name, own, here.machines / name, here.cache / name)
        except BadPlugin as error:
            log.error("%s", error.message)
            found.broken[name] = error
        else:
            found[name] = cast(Provider, made)
