"""Forks of machines: requests are validated first, and the machines are returned."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.core.errors import BadInput, ProviderError
from hiveyard.core.machines import HOST, Machine, MachineSpec
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.door.local_doors import LocalDoors
from hiveyard.library.events import OperationFailed
from hiveyard.machines.bubblewrap import BubblewrapProvider
from tests.library.parts import Yards

pytestmark = pytest.mark.anyio


class _Remembering(BubblewrapProvider):
    """Keeps snapshots that have no memory in them, and removes none."""

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        if meanwhile is not None:
            await meanwhile()
        return SnapshotStats(0.0, 0)

    async def make_ready(self, snapshot: str) -> None:
        pass

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        return await self.boot(name, spec)

    async def snapshots(self) -> set[str]:
        return set()

    async def remove_snapshot(self, snapshot: str) -> None:
        raise ProviderError("the disk does not answer")


@pytest.fixture
def remembering(yards: Yards) -> Yards:
    yards.provider = _Remembering(yards.scratch / "m", yards.scratch / "c")
    return yards


async def test_forks_are_returned_if_their_snapshot_cannot_be_removed(remembering: Yards) -> None:
    yard = remembering.yard()
    ready = await yard.boot_and_prepare(HOST)
    with anyio.fail_after(60):
        forks = await yard.fork(ready, 2)
    assert await remembering.provider.names() == {one.machine.name for one in (ready, *forks)}
    told = [event for event in remembering.events if isinstance(event, OperationFailed)]
    assert [(event.operation, event.reason) for event in told] == [("fork", "the disk does not answer")]
    for one in (ready, *forks):
        await yard.terminate(one.machine)


async def test_a_fork_is_validated_before_anything_is_made(remembering: Yards) -> None:
    async with remembering.yard(doors=LocalDoors({"ANTHROPIC_API_KEY": "sk-ant-Zq8TestSecret"})) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=1000)
    before = len(remembering.events)
    with pytest.raises(BadInput, match="not open"):
        await yard.fork(ready)
    with pytest.raises(BadInput, match="there are no doors"):
        await remembering.yard().fork(ready)
    assert len(remembering.events) == before
    await yard.terminate(ready.machine)


async def test_a_child_gets_a_copy_of_the_session_directory(remembering: Yards) -> None:
    yard, given = remembering.yard(), remembering.scratch / "given"
    ready = await yard.boot_and_prepare(MachineSpec(image=HOST, session=given))
    (given / "file").write_text("parent")
    (child,) = await yard.fork(ready)
    async with remembering.provider.guest(child.machine.name) as guest:
        assert await guest.read("/session/file") == b"parent"
        await guest.write("/session/file", b"child")
    assert (given / "file").read_text() == "parent"
    (grandchild,) = await yard.fork(child)
    async with remembering.provider.guest(grandchild.machine.name) as guest:
        assert await guest.read("/session/file") == b"child"
    for one in (ready, child, grandchild):
        await yard.terminate(one.machine)
    assert (given / "file").read_text() == "parent"
