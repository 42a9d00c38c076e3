"""An orchestrator with an external provider program.

Nothing is decided before the program reports its capabilities, and it ends with the orchestrator. The program is the
sample of the docs, which declares its machines local."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from hiveyard.agents.command import CommandLine
from hiveyard.core.errors import BadInput, ProviderUnavailable
from hiveyard.core.machines import HOST, Image
from hiveyard.core.ports import Openable
from hiveyard.door.local_doors import LocalDoors
from hiveyard.library import Orchestrator
from hiveyard.machines.external import ExternalProvider
from hiveyard.processes.detached import Detached
from tests.contract.providers import SAMPLE
from tests.contract.rootfs import small_image
from tests.library.parts import KEY, HeldClock
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio

LOCAL = """
import asyncio, importlib.util, json, os
from pathlib import Path

found = importlib.util.spec_from_file_location("sample", "SAMPLE")
sample = importlib.util.module_from_spec(found)
found.loader.exec_module(sample)
sample.CAN.update(remote=False, door_url="http://127.0.0.1:8377")

async def noted(provider, asked):
    (provider.machines.parent / "asked.json").write_text(json.dumps(asked))
    return await boot(provider, asked)

async def hello(provider, asked):
    with open(Path(asked["state"], "program"), "a") as pids:
        print(os.getpid(), file=pids)
    return await greet(provider, asked)

boot, sample.Provider.do_boot = sample.Provider.do_boot, noted
greet, sample.Provider.do_hello = sample.Provider.do_hello, hello
asyncio.run(sample.main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    provider: ExternalProvider
    image: Image
    state: Path

    def yard(self, **more: object) -> Orchestrator:
        return Orchestrator(self.provider, Detached(), CommandLine(), **more)  # type: ignore[arg-type]

    def asked(self) -> dict[str, object]:
        """Return the machines that the program was asked to boot."""
        found: dict[str, object] = json.loads((self.state / "asked.json").read_text())
        return found

    def programs(self) -> list[int]:
        """All that were ever started."""
        pids = self.state / "program"
        return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []

    def running(self) -> list[int]:
        return [pid for pid in self.programs() if Path(f"/proc/{pid}").exists()]


@pytest.fixture
def mine() -> Iterator[Mine]:
    with searched_directory() as scratch:
        state, program = Path(scratch, "state"), Path(scratch, "provider.py")
        program.write_text(LOCAL.replace("SAMPLE", SAMPLE[1]))
        provider = ExternalProvider("mine", (SAMPLE[0], str(program)), state, env={"PATH": os.environ["PATH"]})
        mine = Mine(provider=provider, image=small_image(scratch), state=state)
        yield mine
        assert mine.running() == []


async def test_local_machines_get_a_door_a_session_directory_and_a_time_limit(mine: Mine) -> None:
    clock = HeldClock()
    doors = LocalDoors({"ANTHROPIC_API_KEY": KEY})
    async with mine.yard(doors=doors, clock=clock) as yard:
        ready = await yard.boot_and_prepare(mine.image, ttl_seconds=60)
        assert not ready.capabilities.remote
        asked = mine.asked()
        assert asked["network"] == "door"
        assert Path(str(asked["session"])).is_dir()
        assert Path(str(asked["door"]), "door.sock").exists()
        while 60 not in clock.asked:  # noqa: ASYNC110 (by tasks of the orchestrator)
            await anyio.sleep(0.01)
        await yard.terminate(ready.machine)


async def test_nothing_is_made_before_the_capabilities_are_known(mine: Mine) -> None:
    with pytest.raises(BadInput, match="has not been asked") as caught:
        await mine.yard().boot_and_prepare(mine.image)
    assert "async with Orchestrator" in caught.value.hint
    assert mine.programs() == []


async def test_the_program_ends_with_the_last_orchestrator_and_its_machines_stay(mine: Mine) -> None:
    async with mine.yard() as yard:
        async with mine.yard() as other:
            machine = (await other.boot_and_prepare(mine.image)).machine
        assert len(mine.running()) == 1
        assert await yard.processes(machine) == []
    assert mine.running() == []
    async with mine.yard() as again:
        assert await again.processes(machine) == []
        await again.terminate(machine)
    assert len(mine.programs()) == 2


async def test_a_broken_program_is_an_error_when_the_orchestrator_opens(mine: Mine) -> None:
    gone = ExternalProvider("gone", ["/nonexistent"], mine.state, env={})
    assert isinstance(gone, Openable)
    with pytest.raises(ProviderUnavailable, match="gone: its program /nonexistent cannot be started"):
        async with Orchestrator(gone, Detached(), CommandLine()) as yard:
            await yard.boot_and_prepare(HOST)
