"""The whole way in every kind of machine, under every process manager."""

from __future__ import annotations

import json

import pytest

from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command, ProcessStatus
from hiveyard.core.machines import MachineSpec
from hiveyard.core.ports import ProcessManager
from hiveyard.orchestrator import Orchestrator
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from tests.contract.providers import Offer
from tests.support.leaks import Said

from .parts import KEY, profile

pytestmark = pytest.mark.anyio

PROMPT = "say \"hello\" & 'goodbye'\n\n$(touch hacked) `id` \\ ü😀\n"
LOOK = "stat -c '%a %U %n' ~/p ~/p/key ~/.machine.json"


@pytest.mark.parametrize("manager", [Detached(), Tmux()], ids=["detached", "tmux"])
async def test_boot_credentials_session_output_stop_and_end(offer: Offer, said: Said, manager: ProcessManager) -> None:
    provider = offer.provider
    yard = Orchestrator(provider, manager, CommandLine(), on_event=lambda event: said.add(repr(event)))
    ready = await yard.boot_and_prepare(
        MachineSpec(image=offer.image, shape=offer.shape),
        credential_profiles=[profile(check=Command(shell="test -s ~/p/key"))],
        machine_info={"project": "everywhere"},
    )
    home = ready.capabilities.home
    async with provider.guest(ready.machine.name) as guest:
        assert await guest.read("~/p/key") == KEY.encode()
        assert json.loads(await guest.read("~/.machine.json"))["project"] == "everywhere"
        assert (await guest.run(Command(shell=LOOK))).stdout.decode() == (
            f"700 agent {home}/p\n600 agent {home}/p/key\n640 agent {home}/.machine.json\n"
        )
    await yard.start_session(ready.machine, ready.turn("cc-work", command="cat; ls -A"), prompt=PROMPT)
    assert b"".join([piece async for piece in yard.follow(ready.machine, "cc-work")]).decode() == PROMPT
    await yard.start_session(ready.machine, ready.turn("cc-long", command="sleep 10000"), prompt="")
    assert (await yard.stop(ready.machine, "cc-long", grace=1)).status is ProcessStatus.EXITED
    assert {one.name for one in await yard.processes(ready.machine)} == {"cc-work", "cc-long"}
    await yard.terminate(ready.machine)
    assert ready.machine.name not in await provider.names()
