"""Snapshots of running VMs: forks of them, their files, and the state after a failure."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput, NoSpace, NoSuchSnapshot, ProviderUnavailable
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.kit import process
from hiveyard.kit.names import new_id
from hiveyard.machines.qemu import QemuProvider
from hiveyard.machines.qemu.session_disk import SessionDisk
from tests.contract.door import ask, serve_door
from tests.support.blocks import shares_blocks
from tests.support.vm import vm_pid, vm_provider

from .test_qemu_machines import SHAPE, Yard, newest_template, output, yard

__all__ = ["yard"]

pytestmark = [pytest.mark.anyio, pytest.mark.real]

# Counts in an open file of the session, in an open file without a name, and in its own memory.
COUNTER = """
exec 7>>/session/log 6<>/session/gone; rm /session/gone
i=0; while :; do i=$((i+1)); echo "$i" >&7; echo "$i" >&6; echo "$i $BASHPID" >/tmp/count; sleep 0.1; done
"""


class Family:
    """A machine, its children and its snapshots, for one test."""

    def __init__(self, yard: Yard, root: Path) -> None:
        self.provider = yard.provider
        self.yard = yard
        self.root = root
        self.machines: list[str] = []
        self.kept: list[str] = []

    def spec(self, name: str, **more: object) -> MachineSpec:
        return MachineSpec(image=self.yard.image, shape=SHAPE, disk=self.root / name, **more)  # type: ignore[arg-type]

    async def parent(self, **more: object) -> str:
        name = f"p-{new_id()}"
        self.machines.append(name)
        await self.provider.boot(name, self.spec(name, **more))
        return name

    async def snapshot(self, name: str, *, temporary: bool = False) -> str:
        kept = f"s-{new_id()}"
        await self.provider.snapshot(name, kept, temporary=temporary)
        self.kept.append(kept)
        return kept

    async def child(self, kept: str, **more: object) -> str:
        name = f"c-{new_id()}"
        await self.provider.derive_disk(kept, self.root / name)
        self.machines.append(name)
        await self.provider.boot_from(kept, name, self.spec(name, **more))
        return name

    async def child_of_files(self, kept: str) -> str:
        """Start a machine with the files of a snapshot, without its memory."""
        name = f"d-{new_id()}"
        await self.provider.derive_disk(kept, self.root / name)
        self.machines.append(name)
        await self.provider.boot(name, self.spec(name))
        return name

    async def children(self, kept: str, count: int) -> list[str]:
        """Start `count` children at once."""
        made: list[str] = []

        async def begin() -> None:
            made.append(await self.child(kept))

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(begin)
        return made

    def files(self, kept: str) -> set[str]:
        return {path.name for path in (self.yard.state / ".snapshots" / kept).iterdir()}

    async def output(self, name: str, script: str) -> str:
        async with self.provider.guest(name) as guest:
            return await output(guest, script)

    async def counted(self, name: str, beyond: int = -1) -> tuple[int, int]:
        """Wait until the counter is `beyond` a number. Return its value and its pid."""
        with anyio.fail_after(60):
            while True:
                words = (await self.output(name, "cat /tmp/count 2>/dev/null; true")).split()
                if len(words) == 2 and int(words[0]) > beyond:
                    return int(words[0]), int(words[1])


@pytest.fixture
async def family(yard: Yard, tmp_path: Path) -> AsyncIterator[Family]:
    family = Family(yard, tmp_path)
    yield family
    for name in family.machines:
        await yard.provider.terminate(name)
    for name in family.kept:
        await yard.provider.remove_snapshot(name)
    assert not await yard.provider.snapshots()


@asynccontextmanager
async def counting(family: Family, **more: object) -> AsyncIterator[str]:
    name = await family.parent(**more)
    await family.output(name, f"({COUNTER}) </dev/null >/dev/null 2>&1 & echo started")
    await family.counted(name)
    yield name


async def test_processes_continue_in_the_parent_and_in_both_children(family: Family) -> None:
    async with counting(family) as parent:
        await family.output(parent, "echo before >/session/before; echo disk >~/disk")
        at, pid = await family.counted(parent)
        kept = await family.snapshot(parent)
        assert "memory" not in family.files(kept) or shares_blocks(family.yard.state)
        members = [parent, *await family.children(kept, 2)]
        assert "memory" in family.files(kept)
        assert not family.files(kept) & {"base", "changes"}
        reported: list[str] = []
        await family.provider.prepare(family.yard.image, SHAPE, reported.append)
        assert reported == [], "the template that they use is intact"
        counted = [await family.counted(name, beyond=at + 1) for name in members]
        assert {found[1] for found in counted} == {pid}
        assert await family.output(parent, "cat /proc/sys/kernel/hostname") == parent
        ids = set()
        for name in members:
            assert await family.output(name, "ls /session/own 2>/dev/null || echo none") == "none"
            ids.add(await family.output(name, "cat /etc/machine-id"))
            assert await family.output(name, "cat /proc/sys/kernel/hostname /session/before ~/disk") == (
                f"{name}\nbefore\ndisk"
            )
            await family.output(name, f"echo {name} >/session/own; sync")
            # The counter continues to write, to its own machine's disk, with no line lost or doubled.
            lines = (await family.output(name, "cat /session/log")).split()
            assert lines == [str(number) for number in range(1, len(lines) + 1)]
            assert len(lines) > at
            # The open file without a name is still open.
            assert (await family.output(name, f"tail -1 /proc/{pid}/fd/6")).isdigit()
        assert len(ids) == 3


@pytest.mark.long("storms")
async def test_a_child_can_be_snapshotted(family: Family) -> None:
    async with counting(family) as parent:
        child = await family.child(await family.snapshot(parent))
        await family.output(child, "echo deep >~/deep")
        at, pid = await family.counted(child)
        temporary = await family.snapshot(child, temporary=True)
        assert "memory" in family.files(temporary)
        grandchild = await family.child(temporary)
        assert (await family.counted(grandchild, beyond=at + 1))[1] == pid
        assert await family.output(grandchild, "cat ~/deep") == "deep"
        again = await family.child(await family.snapshot(child))
        assert await family.output(again, "cat ~/deep") == "deep"


@pytest.mark.long("storms")
async def test_a_replaced_template_stays_for_machines_that_use_it(family: Family) -> None:
    async with counting(family) as parent:
        at, pid = await family.counted(parent)
        before = await family.snapshot(parent)
        with (newest_template(family.yard) / "memory").open("r+b") as memory:
            memory.write(b"\0")
        reported: list[str] = []
        await family.provider.prepare(family.yard.image, SHAPE, reported.append)
        assert "making it again" in reported[0]
        after = await family.snapshot(parent)
        for kept in (before, after):
            assert (await family.counted(await family.child(kept), beyond=at + 1))[1] == pid


async def test_a_snapshot_outlives_its_machine_and_the_provider(family: Family) -> None:
    async with counting(family) as parent:
        at, pid = await family.counted(parent)
        kept = await family.snapshot(parent)
        await family.provider.terminate(parent)
        family.provider = vm_provider(family.yard.state)
        assert await family.provider.snapshots() == {kept}
        child = await family.child(kept)
        assert (await family.counted(child, beyond=at + 1))[1] == pid
        await family.provider.aclose()


async def test_a_connection_to_the_door_ends_at_once_in_the_child_and_not_in_the_parent(
    family: Family, tmp_path: Path
) -> None:
    door = tmp_path / "door"
    door.mkdir()
    listener = await anyio.create_unix_listener(door / "door.sock")
    (door / "door.sock").chmod(0o666)
    arrived: list[anyio.abc.SocketStream] = []

    async def take(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            arrived.append(stream)
            await anyio.sleep_forever()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, take)
        parent = await family.parent(door=door)
        script = "exec 3<>/dev/tcp/10.0.2.100/80; echo asked >&3; cat <&3; echo over >/tmp/over"
        await family.output(parent, f"(bash -c '{script}') </dev/null >/dev/null 2>&1 & echo started")
        with anyio.fail_after(60):
            while not arrived:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        child = await family.child(await family.snapshot(parent))
        with anyio.fail_after(30):
            await family.output(child, "until [ -e /tmp/over ]; do sleep 0.1; done")
        assert await family.output(parent, "cat /tmp/over 2>/dev/null || echo open") == "open"
        group.cancel_scope.cancel()


async def test_a_child_reaches_its_own_door(family: Family, tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.mkdir()
    parent = await family.parent()
    child = await family.child(await family.snapshot(parent), door=door)
    with serve_door(door, "the child's"):
        async with family.provider.guest(child) as guest:
            answer = await guest.run(ask(family.provider.capabilities, "/"), timeout=60)
    assert answer.stdout.endswith(b"the child's /"), answer


def _processor_time(family: Family, name: str) -> int:
    """Return the clock ticks that a machine's processors have used: they are threads of QEMU, and only they."""
    total = 0
    for task in Path(f"/proc/{vm_pid(family.yard.state, name)}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total


async def test_a_machine_can_be_paused_and_resumed(family: Family) -> None:
    async with counting(family) as parent:
        await family.provider.pause(parent)
        await family.provider.pause(parent)
        assert (await family.provider.get(parent)).status is MachineStatus.READY
        before = _processor_time(family, parent)
        await anyio.sleep(1)
        assert _processor_time(family, parent) == before
        await vm_provider(family.yard.state).resume(parent)
        await family.provider.resume(parent)
        at, _ = await family.counted(parent)
        await family.counted(parent, beyond=at)
        await family.provider.pause(parent)
        await family.provider.terminate(parent)


async def test_a_machine_is_paused_for_the_callback_and_no_longer(family: Family) -> None:
    async with counting(family) as parent:
        seen = []

        async def look() -> None:
            for _ in range(2):
                seen.append(_processor_time(family, parent))
                await anyio.sleep(0.5)
            raise ValueError("and then it fails")

        with pytest.raises(ValueError, match="and then it fails"):
            await family.provider.snapshot(parent, "never", look)
        assert seen[0] == seen[1]
        assert not await family.provider.snapshots()
        at, _ = await family.counted(parent)
        await family.counted(parent, beyond=at)


async def test_a_disk_goes_on_without_the_memory(family: Family) -> None:
    """Whether it was frozen for a snapshot, synced for one with memory, or left by a machine that is gone."""
    async with counting(family) as parent:
        await family.output(parent, "echo before >/session/before")
        kept = await family.snapshot(parent)
        await family.output(parent, "echo later >/session/later")
        await family.provider.snapshot_disk(parent, "files")
        family.kept.append("files")
        with pytest.raises(ProviderUnavailable, match="no memory"):
            await family.provider.boot_from("files", "c-files", family.spec("c-files"))
        at, _ = await family.counted(parent)
        await family.counted(parent, beyond=at)
        await family.output(parent, "echo last >/session/last")
        await family.provider.terminate(parent)
    for snapshot, files in ((kept, "before"), ("files", "before later"), (parent, "before last later")):
        name = f"d-{new_id()}"
        if snapshot == parent:
            (family.root / parent).rename(family.root / name)
        else:
            await family.provider.derive_disk(snapshot, family.root / name)
        family.machines.append(name)
        await family.provider.boot(name, family.spec(name))
        assert await family.output(name, "cd /session; echo $(ls before la* 2>/dev/null)") == files
        assert (await family.output(name, "tail -n 1 /session/log")).isdigit()


async def test_a_long_chain_of_files_becomes_short_while_the_machine_runs(family: Family) -> None:
    parent = await family.parent()
    disk = SessionDisk(family.root / parent)
    lengths = []
    for number in range(24):
        await family.output(parent, f"echo {number} >>/session/log; echo {number} >/session/{number}")
        await family.provider.snapshot_disk(parent, f"s-{number}")
        family.kept.append(f"s-{number}")
        lengths.append(len(disk.numbers()))
        if number % 5:
            await family.provider.remove_snapshot(family.kept.pop())
    assert max(lengths) <= 16 and min(lengths[12:]) < 10, lengths
    await family.provider.terminate(parent)
    assert await family.output(await family.child_of_files("s-20"), "cd /session; wc -l <log; ls | wc -l") == "21\n23"
    await family.provider.boot(parent, family.spec(parent))
    assert await family.output(parent, "cd /session; wc -l <log; ls | wc -l") == "24\n26"


async def test_the_clock_of_a_machine_is_right_after_a_snapshot(family: Family) -> None:
    async def long() -> None:
        await anyio.sleep(5)

    parent = await family.parent()
    stats = await family.provider.snapshot(parent, "s-long", long)
    family.kept.append("s-long")
    assert stats.seconds >= 5
    before = time.time()
    clock = float(await family.output(parent, "date +%s.%N"))
    assert before - 2 < clock < time.time() + 2


async def test_a_full_disk_leaves_the_machine_running_and_no_partial_snapshot(family: Family) -> None:
    async with counting(family) as parent:
        at, _ = await family.counted(parent)
        # A file system that is too small for a snapshot.
        small = family.yard.state / ".snapshots"
        small.mkdir(exist_ok=True)
        assert (await process.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)])).ok
        try:
            with pytest.raises(NoSpace):
                await family.provider.snapshot(parent, "full")
            left = [path for path in small.rglob("*") if path.is_file() and path.stat().st_size]
            assert not left, "lock files are empty"
        finally:
            assert (await process.run(["umount", str(small)])).ok
        await family.counted(parent, beyond=at + 1)
        child = await family.child(await family.snapshot(parent))
        await family.counted(child, beyond=at + 1)


_MAKER = """
import sys, anyio
from pathlib import Path
from tests.support.vm import vm_pid, vm_provider
anyio.run(vm_provider(Path(sys.argv[1])).snapshot, sys.argv[2], sys.argv[3])
"""


async def test_a_process_killed_while_it_takes_a_snapshot_leaves_a_running_machine(family: Family) -> None:
    async with counting(family) as parent:
        half = family.yard.state / ".snapshots"
        for step in (".new-*", ".new-*/state"):
            at, _ = await family.counted(parent)
            argv = [sys.executable, "-c", _MAKER, str(family.yard.state), parent, "killed"]
            async with process.running(argv, cwd=Path(__file__).parents[3], grace=0.0) as maker:
                while maker.returncode is None and not list(half.glob(step)):  # noqa: ASYNC110
                    await anyio.sleep(0.001)
                maker.kill()
            again: QemuProvider = vm_provider(family.yard.state)
            family.provider = again
            await family.counted(parent, beyond=at + 1)
            await again.remove_snapshot("killed")
            assert not await again.snapshots()


async def test_an_absent_snapshot_is_refused(family: Family) -> None:
    with pytest.raises(NoSuchSnapshot):
        await family.provider.boot_from("nothing", "c-nothing", family.spec("x"))
    with pytest.raises(BadInput):
        await family.provider.boot_from("../x", "c-nothing", family.spec("x"))
    await family.provider.remove_snapshot("nothing")
