"""Find providers that are not part of Hiveyard: programs of the settings file (`[external.NAME]`), and plugins."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast

import anyio

from hiveyard import plugins
from hiveyard.core.errors import BadPlugin, BadSetting
from hiveyard.core.machines import Capabilities, WorkspaceKind
from hiveyard.core.ports import Provider
from hiveyard.door.keys import VARIABLES
from hiveyard.engine.placement.provider_choice import unknown
from hiveyard.machines.external import ExternalProvider
from hiveyard.machines.external.program import PLAIN
from hiveyard.machines.external.settings import ExternalProgram
from hiveyard.paths import Paths

log = logging.getLogger("hiveyard.daemon")
_UNKNOWN = Capabilities(door_url="", workspace=WorkspaceKind.CARRIED, closes_network=False, costs_money=True)
"""The capabilities that are assumed for a program that does not answer: it runs no agent and is no default."""
_GREETING = 5.0  # seconds for programs to report their capabilities, before the first request


class Providers(dict[str, Provider]):
    """Providers by name. Looking up a broken plugin raises its BadPlugin; the others are not affected. An unknown name
    raises BadInput: a session may outlast the provider that it ran on."""

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
    own: Mapping[str, Provider], paths: Paths, programs: Mapping[str, ExternalProgram], environment: Mapping[str, str]
) -> AsyncIterator[Providers]:
    """Yield Hiveyard's own providers and the foreign ones, whose programs run for as long as the block lasts. Raises
    BadSetting, BadInput for an invalid name, and BadPlugin for one that is taken."""
    found = Providers(own)
    _add_plugins(found, paths)
    external = [_external(name, program, found, paths, environment) for name, program in programs.items()]
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
    name: str, program: ExternalProgram, taken: Providers, paths: Paths, environment: Mapping[str, str]
) -> ExternalProvider:
    if name in taken or name in taken.broken or name == "auto":
        raise BadSetting(f"{paths.config}: external.{name}: a provider with this name exists already")
    if keys := set(program.env) & set(VARIABLES.values()):
        raise BadSetting(
            f"{paths.config}: external.{name}: {', '.join(sorted(keys))} are keys, which stay with the door"
        )
    env = {key: environment[key] for key in (*PLAIN, *program.env) if key in environment}
    return ExternalProvider(name, program.command, paths.machines / name, env=env, settings=program, unheard=_UNKNOWN)


def _add_plugins(found: Providers, paths: Paths) -> None:
    own = ("auto", *found)
    for name in plugins.names("hiveyard.providers", own):
        try:
            made = plugins.make("hiveyard.providers", name, own, paths.machines / name, paths.cache / name)
        except BadPlugin as error:
            log.error("%s", error.message)
            found.broken[name] = error
        else:
            found[name] = cast(Provider, made)
