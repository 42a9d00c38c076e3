"""The whole way in every kind of machine, under every process manager."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command, ProcessStatus
from hiveyard.core.errors import BadInput
from hiveyard.core.events import DoorRefused
from hiveyard.core.machines import MachineSpec
from hiveyard.core.ports import ProcessManager, Snapshots
from hiveyard.door.local_doors import LocalDoors
from hiveyard.library import Orchestrator, Prepared, RuntimeEvent
from hiveyard.library.events import DoorReported
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from tests.contract.door import ask
from tests.contract.providers import Offer
from tests.library.parts import KEY, profile
from tests.support.leaks import Said

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


async def test_each_kind_of_machine_reaches_its_door_which_refuses_other_keys(offer: Offer, said: Said) -> None:
    events: list[RuntimeEvent] = []
    doors = LocalDoors({"ANTHROPIC_API_KEY": KEY})
    async with Orchestrator(offer.provider, Detached(), CommandLine(), on_event=events.append, doors=doors) as yard:
        ready = await yard.boot_and_prepare(MachineSpec(image=offer.image, shape=offer.shape))
        async with offer.provider.guest(ready.machine.name) as guest:
            answer = await guest.run(ask(ready.capabilities, "/"), timeout=60)
            refused = await guest.run(ask(ready.capabilities, "/anthropic/v1/models"), timeout=60)
        await yard.terminate(ready.machine)
    assert answer.stdout.endswith(b"door") and b" 401 " in refused.stdout
    assert [type(event.fact) for event in events if isinstance(event, DoorReported)] == [DoorRefused]
    said.add(repr(events) + answer.stdout.decode() + refused.stdout.decode())


async def counts_on(yard: Orchestrator, ready: Prepared) -> None:
    """Check that the counter there continues where it was."""
    said_there = b""
    async with aclosing(yard.follow(ready.machine, "count")) as pieces:
        async for piece in pieces:
            said_there += piece
            if said_there.count(b"\n") > 20:
                break
    lines = [int(line) for line in said_there.split(b"\n")[:-1]]
    assert lines == list(range(1, len(lines) + 1))


async def test_a_machine_is_forked_and_saved_with_its_processes(offer: Offer, said: Said) -> None:
    provider = offer.provider
    doors = LocalDoors({"ANTHROPIC_API_KEY": KEY}) if offer.provider.capabilities.door_url else None
    async with Orchestrator(provider, Detached(), CommandLine(), on_event=lambda _: None, doors=doors) as yard:
        ready = await yard.boot_and_prepare(MachineSpec(image=offer.image, shape=offer.shape))
        if not isinstance(provider, Snapshots):
            with pytest.raises(BadInput, match="cannot be forked"):
                await yard.fork(ready)
            with pytest.raises(BadInput, match="cannot save memory"):
                await yard.snapshot(ready)
            await yard.terminate(ready.machine)
            return
        count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
        await yard.start_session(ready.machine, ready.turn("count", command=count), prompt="")
        children = await yard.fork(ready, 2)
        seen = {}
        for one in (ready, *children):
            await counts_on(yard, one)
            async with provider.guest(one.machine.name) as guest:
                seen[one.machine.name] = (await guest.run(Command(argv=("hostname",)))).stdout
                if doors is not None:
                    assert (await guest.run(ask(one.capabilities, "/"), timeout=60)).stdout.endswith(b"door")
        assert len(set(seen.values())) == 3, "each is a machine of its own"
        kept = await yard.snapshot(ready)
        for one in (ready, *children):
            await yard.terminate(one.machine)
        later = await yard.boot_and_prepare(ready.spec, snapshot=kept, machine_info={"project": "later"})
        await counts_on(yard, later)
        async with provider.guest(later.machine.name) as guest:
            assert json.loads(await guest.read("~/.machine.json"))["project"] == "later"
            if doors is not None:
                assert (await guest.run(ask(later.capabilities, "/"), timeout=60)).stdout.endswith(b"door")
        assert (await yard.stop(later.machine, "count", grace=1)).status is ProcessStatus.EXITED
        await yard.remove_snapshot(kept)
        await yard.terminate(later.machine)
        assert await provider.snapshots() == set()
        assert await provider.names() == set()
