"""Snapshots of the library: memory and session directory together.

Memory itself is tested in tests/machines/qemu; the provider here saves none, and the rest is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import ProcessStatus
from hiveyard.core.errors import BadInput, NoSpace, NotPrepared, OperationFailed
from hiveyard.core.machines import HOST, Machine, MachineSpec
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.door.local_doors import LocalDoors
from hiveyard.library import Orchestrator, Prepared, Snapshot
from hiveyard.library.events import SnapshotTaken
from hiveyard.machines.bubblewrap import BubblewrapProvider
from tests.library.parts import KEY, QUOTING, Quoting, Yards, profile
from tests.support.leaks import Said

pytestmark = pytest.mark.anyio


class _Forgetful(BubblewrapProvider):
    """Keeps snapshots by name, with no memory in them. `full` says that there is no room, once all is copied."""

    full = False

    def __init__(self, state: Path, cache: Path) -> None:
        super().__init__(state, cache)
        self.kept: set[str] = set()

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        assert meanwhile is not None
        await meanwhile()
        if self.full:
            raise NoSpace(f"no room for {snapshot}, says {KEY}")
        self.kept.add(snapshot)
        return SnapshotStats(0.0, 0)

    async def make_ready(self, snapshot: str) -> None:
        pass

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        assert snapshot in self.kept
        return await self.boot(name, spec)

    async def snapshots(self) -> set[str]:
        return set(self.kept)

    async def remove_snapshot(self, snapshot: str) -> None:
        self.kept.discard(snapshot)


@pytest.fixture
def forgetful(yards: Yards) -> _Forgetful:
    yards.provider = provider = _Forgetful(yards.scratch / "m", yards.scratch / "c")
    return provider


async def worked(yards: Yards) -> tuple[Orchestrator, Prepared]:
    """A machine in which a process has said and left something."""
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST, credential_profiles=[profile()])
    await yard.start_session(
        ready.machine, ready.turn("work", command="echo said; echo left > /session/left"), prompt=""
    )
    assert b"".join([piece async for piece in yard.follow(ready.machine, "work")]) == b"said\n"
    return yard, ready


async def left_in(yard: Orchestrator, ready: Prepared) -> tuple[str, str]:
    """Return the processes that the process manager knows there, and the files next to them."""
    (work,) = await yard.processes(ready.machine)
    assert (work.name, work.status) == ("work", ProcessStatus.EXITED)
    async with yard.provider.guest(ready.machine.name) as guest:
        return (await yard.logs(ready.machine, "work")).decode(), (await guest.read("/session/left")).decode()


async def test_machines_are_booted_from_a_snapshot_of_a_removed_machine(yards: Yards, forgetful: _Forgetful) -> None:
    yard, ready = await worked(yards)
    kept = await yard.snapshot(ready)
    assert [event.snapshot for event in yards.events if isinstance(event, SnapshotTaken)] == [kept.name]
    async with forgetful.guest(ready.machine.name) as guest:
        await guest.write("/session/left", b"later\n")
    await yard.terminate(ready.machine)
    children = [await yard.boot_and_prepare(ready.spec, snapshot=kept) for _ in range(2)]
    async with forgetful.guest(children[0].machine.name) as guest:
        assert await guest.read("/session/left") == b"left\n"
        await guest.write("/session/left", b"changed\n")
    assert await left_in(yard, children[1]) == ("said\n", "left\n")
    await yard.remove_snapshot(kept)
    assert forgetful.kept == set() and kept.session is not None and not kept.session.exists()
    await yard.remove_snapshot(kept)
    assert await left_in(yard, children[1]) == ("said\n", "left\n")
    for child in children:
        await yard.terminate(child.machine)


async def test_another_process_can_use_a_snapshot(yards: Yards, forgetful: _Forgetful) -> None:
    yard, ready = await worked(yards)
    kept = await yard.snapshot(ready, session=yards.scratch / "kept")
    await yard.terminate(ready.machine)
    other, again = yards.yard(), Snapshot(name=kept.name, session=yards.scratch / "kept")
    spec = MachineSpec(image=HOST, session=yards.scratch / "mine")
    child = await other.boot_and_prepare(spec, snapshot=again)
    assert await left_in(other, child) == ("said\n", "left\n")
    await other.terminate(child.machine)
    assert (yards.scratch / "mine/left").read_text() == "left\n"
    with pytest.raises(BadInput, match="mine has files"):
        await other.boot_and_prepare(spec, snapshot=again)
    # As one that was copied by hand: the name alone does.
    child = await other.boot_and_prepare(spec, snapshot=kept.name)
    assert await left_in(other, child) == ("said\n", "left\n")
    await other.terminate(child.machine)
    await other.remove_snapshot(again)
    assert not (yards.scratch / "kept").exists()


@pytest.mark.parametrize("there", [False, True], ids=["absent", "empty"])
async def test_a_failed_boot_from_a_snapshot_leaves_the_session_directory_empty(
    yards: Yards, forgetful: _Forgetful, there: bool
) -> None:
    yard, ready = await worked(yards)
    kept = await yard.snapshot(ready)
    await yard.terminate(ready.machine)
    spec = MachineSpec(image=HOST, session=yards.scratch / "mine")
    if there:
        (yards.scratch / "mine").mkdir()
    with pytest.raises(NotPrepared, match="its check exited"):
        await yard.boot_and_prepare(spec, snapshot=kept, credential_profiles=[profile(check=QUOTING)])
    forgetful.kept.clear()
    with pytest.raises(AssertionError):
        await yard.boot_and_prepare(spec, snapshot=kept)
    forgetful.kept.add(kept.name)
    child = await yard.boot_and_prepare(spec, snapshot=kept)
    assert await left_in(yard, child) == ("said\n", "left\n")
    await yard.terminate(child.machine)
    assert (yards.scratch / "mine/left").read_text() == "left\n"
    await yard.remove_snapshot(kept)


async def test_a_snapshot_has_its_secrets_and_placeholder(yards: Yards, forgetful: _Forgetful, said: Said) -> None:
    async with yards.yard(Quoting(), doors=LocalDoors({"ANTHROPIC_API_KEY": "sk-ant-Zq8TestSecret"})) as yard:
        ready = await yard.boot_and_prepare(HOST, credential_profiles=[profile()])
        kept = await yard.snapshot(ready)
        await yard.terminate(ready.machine)
        child = await yard.boot_and_prepare(HOST, snapshot=kept)
        assert child.placeholder is not None and child.placeholder == ready.placeholder
        assert kept.secrets >= {*profile().masked(), child.placeholder}
        assert KEY not in yard._mask(child.machine.name).text(KEY)
        said.add(repr(kept))
        await yard.terminate(child.machine)
        await yard.remove_snapshot(kept)


async def test_a_failed_snapshot_leaves_nothing(yards: Yards, forgetful: _Forgetful, said: Said) -> None:
    yard, ready = await worked(yards)
    forgetful.full = True
    with pytest.raises(OperationFailed, match="says \\*\\*\\*\\*") as refused:
        await yard.snapshot(ready, session=yards.scratch / "kept")
    said.add_error(refused.value)
    about = {"operation": "snapshot", "machine": ready.machine.name, "cause": "provider.no_space"}
    assert refused.value.context == about
    assert not (yards.scratch / "kept").exists()
    assert await left_in(yard, ready) == ("said\n", "left\n")
    await yard.terminate(ready.machine)


def _a_file(yards: Yards) -> Path:
    (yards.scratch / "file").write_text("")
    return yards.scratch / "file"


async def test_a_snapshot_without_its_files_is_refused_and_nothing_is_overwritten(
    yards: Yards, forgetful: _Forgetful
) -> None:
    yard, ready = await worked(yards)
    told = len(yards.events)
    with pytest.raises(BadInput, match="has no session directory") as refused:
        await yard.boot_and_prepare(HOST, snapshot="memory")
    assert "Orchestrator.snapshot" in refused.value.hint
    with pytest.raises(BadInput, match="already exists"):
        await yard.snapshot(ready, session=_a_file(yards))
    assert len(yards.events) == told
    assert _a_file(yards).exists()
    kept = await yard.snapshot(ready)
    with pytest.raises(NotPrepared, match="cannot be replaced by a copy"):
        await yard.boot_and_prepare(replace(ready.spec, session=_a_file(yards)), snapshot=kept)
    await yard.remove_snapshot(kept)
    await yard.terminate(ready.machine)


async def test_providers_without_snapshots_are_refused(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    acts: list[Callable[[], object]] = [
        lambda: yard.snapshot(ready),
        lambda: yard.remove_snapshot(Snapshot(name="none")),
    ]
    for act in acts:
        with pytest.raises(BadInput, match="cannot save memory"):
            await act()  # type: ignore[misc]
    await yard.terminate(ready.machine)


async def test_a_cancelled_snapshot_leaves_nothing(yards: Yards, forgetful: _Forgetful) -> None:
    yard, ready = await worked(yards)
    with anyio.CancelScope() as patience:
        patience.cancel()
        await yard.snapshot(ready, session=yards.scratch / "kept")
    assert patience.cancelled_caught and forgetful.kept == set() and not (yards.scratch / "kept").exists()
    await yard.terminate(ready.machine)
