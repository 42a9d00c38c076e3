"""Conversations with real agent programs, in a machine of this host that reaches nothing but the scripted model.

async with stage(scratch, programs, "claude", scripts=...) as place, place.talk(ask=True) as talk:
    events = [event async for event in talk.turn("do it")]
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import anyio

from hiveyard import agents
from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.drivers import HasDriver
from hiveyard.core.machines import HOST, Capabilities, MachineSpec, Network
from hiveyard.core.ports import Guest, Turn
from hiveyard.library.conversation import Conversation, open_conversation
from hiveyard.machines.bubblewrap import BubblewrapProvider, BubblewrapSettings
from hiveyard.processes.detached import Detached
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Script

REPO = "/session/work"


@dataclass(kw_only=True)
class Stage:
    """A ready machine with a repository, and an agent that has not been started."""

    guest: Guest
    agent: HasDriver
    capabilities: Capabilities
    model: ScriptedModel
    path: str
    session: Path
    manager: Detached

    @asynccontextmanager
    async def talk(self, name: str = "live", *, offset: int = 0, **turn: Any) -> AsyncIterator[Conversation]:
        """The conversation of process `name`, which is started when it does not run."""
        asked = self.turn(name, **turn)
        spec = self.spec(asked)
        await self.manager.start(self.guest, spec)
        async with open_conversation(self.guest, self.manager, spec, self.agent.driver(asked), offset=offset) as talk:
            yield talk

    async def asked(self, requests: int = 1) -> None:
        """Wait until the model got so many requests."""
        with anyio.fail_after(60):
            while len(self.model.requests) < requests:  # noqa: ASYNC110 - it has no event for it
                await anyio.sleep(0.05)

    def turn(self, name: str, **rest: Any) -> Turn:
        parts: dict[str, Any] = {"state": "/session/state", "placeholder": "hv-placeholder", "prompt": "/nowhere"}
        parts |= {"name": name, "workdir": REPO, "door_url": self.capabilities.door_url, **rest}
        return Turn(**parts)

    def spec(self, turn: Turn) -> ProcessSpec:
        spec = self.agent.live_process(turn)
        return replace(spec, command=replace(spec.command, env={"PATH": self.path, **spec.command.env}))


@asynccontextmanager
async def stage(
    scratch: Path, programs: Mapping[str, Path], agent: str, script: Script = (), **model: Any
) -> AsyncIterator[Stage]:
    """`scratch` is a short path: a socket of the door is below it."""
    session, door = scratch / "session", scratch / "door"
    session.mkdir()
    door.mkdir()
    shown = tuple(sorted({str(program.parent) for program in programs.values()}))
    settings = BubblewrapSettings(host_paths=shown)
    provider = BubblewrapProvider(scratch / "state", scratch / "cache", settings)
    await provider.prepare(HOST, MachineSpec(image=HOST).shape)
    spec = MachineSpec(image=HOST, session=session, door=door, network=Network.DOOR)
    async with scripted_model(script, socket=door / "door.sock", **model) as served:
        (door / "door.sock").chmod(0o666)
        await provider.boot("talk", spec)
        try:
            async with provider.guest("talk") as guest:
                made = await guest.run(Command(shell=f"git init -q -b main {REPO} && mkdir -m 700 /session/state"))
                assert made.ok, made.stderr
                yield Stage(
                    guest=guest,
                    agent=cast(HasDriver, agents.by_name(agent)),
                    capabilities=provider.capabilities,
                    model=served,
                    path=":".join([*shown, "/usr/local/bin:/usr/bin:/bin"]),
                    session=session,
                    manager=Detached(),
                )
        finally:
            await provider.terminate("talk")
