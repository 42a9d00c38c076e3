"""Snapshots of running VMs: forks of them, their files, and the state after a failure."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput, NoSpace, NoSuchSnapshot
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.kit import process
from hiveyard.kit.copying import copy_tree
from hiveyard.kit.names import new_id
from hiveyard.machines.qemu import QemuProvider
from tests.contract.door import ask, serve_door
from tests.support.blocks import shares_blocks
from tests.support.vm import vm_provider

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
        return MachineSpec(image=self.yard.image, shape=SHAPE, session=self.root / name, **more)  # type: ignore[arg-type]

    async def parent(self, **more: object) -> str:
        name = f"p-{new_id()}"
        (self.root / name).mkdir()
        self.machines.append(name)
        await self.provider.boot(name, self.spec(name, **more))
        return name

    async def snapshot(self, name: str, *, temporary: bool = False) -> str:
        kept = f"s-{new_id()}"

        async def files() -> None:
            copy_tree(self.root / name, self.root / kept)

        await self.provider.snapshot(name, kept, files, temporary=temporary)
        self.kept.append(kept)
        return kept

    async def child(self, kept: str, **more: object) -> str:
        name = f"c-{new_id()}"
        copy_tree(self.root / kept, self.root / name)
        self.machines.append(name)
        await self.provider.boot_from(kept, name, self.spec(name, **more))
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
            ids.add(await family.output(name, "cat /etc/machine-id"))
            assert await family.output(name, "cat /proc/sys/kernel/hostname /session/before ~/disk") == (
                f"{name}\nbefore\ndisk"
            )
            await family.output(name, f"echo {name} >/session/own; sync")
            assert (family.root / name / "own").read_text() == f"{name}\n"
            # The counter continues to write, to its own machine's directory, with no line lost or doubled.
            lines = (family.root / name / "log").read_text().split()
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


async def test_a_machine_can_be_paused_and_resumed(family: Family) -> None:
    async with counting(family) as parent:
        await family.provider.pause(parent)
        await family.provider.pause(parent)
        assert (await family.provider.get(parent)).status is MachineStatus.READY
        before = (family.root / parent / "log").read_bytes()
        await anyio.sleep(1)
        assert (family.root / parent / "log").read_bytes() == before
        server = _server(family.yard.state, parent)
        await vm_provider(family.yard.state).resume(parent)
        await family.provider.resume(parent)
        await family.counted(parent, beyond=len(before.split()))
        await family.provider.pause(parent)
        await family.provider.terminate(parent)
        with anyio.fail_after(30):
            while server.exists():  # noqa: ASYNC110
                await anyio.sleep(0.1)


def _server(state: Path, name: str) -> Path:
    """Return the process that serves a machine's session."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    socket = next(words[6] for words in lines if words[-1] == str(state / name / "session.sock"))
    for owner in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) == f"socket:[{socket}]" for fd in (owner / "fd").iterdir()):
                return owner
    raise AssertionError(f"no process serves the session of {name}")


async def test_a_machine_is_paused_for_the_callback_and_no_longer(family: Family) -> None:
    async with counting(family) as parent:
        count, seen = family.root / parent / "count", []
        await family.output(
            parent, "(while :; do cp /tmp/count /session/count; done) </dev/null >/dev/null 2>&1 & echo on"
        )
        with anyio.fail_after(60):
            while not count.exists():  # noqa: ASYNC110 (it is a guest that writes it)
                await anyio.sleep(0.05)

        async def look() -> None:
            for _ in range(2):
                await anyio.sleep(0.5)
                seen.append(count.read_text())
            raise ValueError("and then it fails")

        with pytest.raises(ValueError, match="and then it fails"):
            await family.provider.snapshot(parent, "never", look)
        assert seen[0] == seen[1]
        assert not await family.provider.snapshots()
        with anyio.fail_after(60):
            while count.read_text() == seen[1]:  # noqa: ASYNC110
                await anyio.sleep(0.1)


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
from tests.support.vm import vm_provider
anyio.run(vm_provider(Path(sys.argv[1])).snapshot, sys.argv[2], sys.argv[3])
"""


async def test_a_process_killed_while_it_takes_a_snapshot_leaves_a_running_machine(family: Family) -> None:
    async with counting(family) as parent:
        half = family.yard.state / ".snapshots"
        for step in (".new-*", ".new-*/state", ".new-*/table.json"):
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
