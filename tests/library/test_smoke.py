"""The complete path with real parts: a VM, container or namespace, PM2, Claude Code and a door. Only the model is
scripted."""

from __future__ import annotations

import json

import msgspec
import pytest

from hiveyard.agents.claude.adapter import Claude
from hiveyard.core.commands import Command, ProcessStatus
from hiveyard.core.machines import MachineSpec, Shape
from hiveyard.credentials import profiles
from hiveyard.door.local_doors import LocalDoors
from hiveyard.images.images import Images
from hiveyard.kit.secret import Secret
from hiveyard.library import Orchestrator, RuntimeEvent
from hiveyard.paths import default_paths
from hiveyard.processes import by_name
from hiveyard.testing.model import scripted_model
from hiveyard.testing.script import Call, File, Step, say
from tests.contract.providers import Offer
from tests.library.parts import KEY, PLACEHOLDER
from tests.support.leaks import Said

pytestmark = [pytest.mark.anyio, pytest.mark.real]

PROMPT = "Write \"hello.txt\", 'please':\n\n\t$(touch hacked) `id` \\ && exit 1\n-- --help\nü😀 \"\"\"end'''\n"
SCRIPT = [Step(text="I write.", calls=[Call(write=File(path="hello.txt", content="Hello.\n"))]), say("It is written.")]


async def test_claude_under_pm2_with_credentials_and_a_door(offer: Offer, said: Said) -> None:
    def hear(event: RuntimeEvent) -> None:
        said.add(repr(event) + msgspec.json.encode(event).decode())

    image = await Images(default_paths().cache).ensure("default")
    manager, provider = by_name("pm2"), offer.provider
    async with scripted_model(SCRIPT, key=KEY) as model:
        upstream = {"ANTHROPIC_API_KEY": KEY, "HIVEYARD_ANTHROPIC_UPSTREAM": f"{model.url}/anthropic"}
        async with Orchestrator(provider, manager, Claude(), on_event=hear, doors=LocalDoors(upstream)) as yard:
            placeholder = Secret(PLACEHOLDER)
            ready = await yard.boot_and_prepare(
                MachineSpec(image=image, shape=Shape(memory_mib=2048)),
                placeholder=placeholder,
                credential_profiles=[profiles.claude(provider.capabilities.door_url, placeholder)],
                machine_info={"project": "smoke"},
            )
            (profile,) = ready.installed
            async with provider.guest(ready.machine.name) as guest:
                modes = await guest.run(Command(argv=("stat", "-c", "%a", "--", *map(_bare, profile.paths))))
                assert set(modes.stdout.split()) == {b"700", b"600"}, modes  # a directory, and its files
                assert json.loads(await guest.read("~/.machine.json"))["project"] == "smoke"

            await yard.start_session(ready.machine, ready.turn("cc-hello"), prompt=PROMPT)
            raw = b"".join([piece async for piece in yard.follow(ready.machine, "cc-hello")])
            assert b"It is written." in raw
            assert b"It is written." in await yard.logs(ready.machine, "cc-hello")
            (process,) = await yard.processes(ready.machine)
            assert (process.name, process.status, process.exit_code) == ("cc-hello", ProcessStatus.EXITED, 0)
            assert model.asked[0].prompt.strip() == PROMPT.strip()
            async with provider.guest(ready.machine.name) as guest:
                assert await guest.read(f"{ready.turn('x').workdir}/hello.txt") == b"Hello.\n"
                assert not await guest.exists(f"{ready.turn('x').workdir}/hacked")
            assert (await yard.stop(ready.machine, "cc-hello")).exit_code == 0, "ended already is a success"
            await yard.terminate(ready.machine)
    assert ready.machine.name not in await provider.names()


def _bare(path: str) -> str:
    return path.replace("~", "/home/agent", 1)
