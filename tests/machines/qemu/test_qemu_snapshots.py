"""Snapshots of running VMs: what goes on from them, what they leave, what a failure leaves."""

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

from .test_qemu_machines import SHAPE, Yard, newest_template, says, yard

__all__ = ["yard"]

pytestmark = [pytest.mark.anyio, pytest.mark.real]

# Counts in a file of the session that it holds open, in one without a name, and in its own memory.
COUNTER = """
exec 7>>/session/log 6<>/session/gone; rm /session/gone
i=0; while :; do i=$((i+1)); echo "$i" >&7; echo "$i" >&6; echo "$i $BASHPID" >/tmp/count; sleep 0.1; done
"""


class Litter:
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
        """That many, begun at once."""
        made: list[str] = []

        async def begin() -> None:
            made.append(await self.child(kept))

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(begin)
        return made

    def files(self, kept: str) -> set[str]:
        return {path.name for path in (self.yard.state / ".snapshots" / kept).iterdir()}

    async def says(self, name: str, script: str) -> str:
        async with self.provider.guest(name) as guest:
            return await says(guest, script)

    async def counted(self, name: str, beyond: int = -1) -> tuple[int, int]:
        """How far the counter is, when that is beyond a number, and its pid."""
        with anyio.fail_after(60):
            while True:
                words = (await self.says(name, "cat /tmp/count 2>/dev/null; true")).split()
                if len(words) == 2 and int(words[0]) > beyond:
                    return int(words[0]), int(words[1])


@pytest.fixture
async def litter(yard: Yard, tmp_path: Path) -> AsyncIterator[Litter]:
    litter = Litter(yard, tmp_path)
    yield litter
    for name in litter.machines:
        await yard.provider.terminate(name)
    for name in litter.kept:
        await yard.provider.remove_snapshot(name)
    assert not await yard.provider.snapshots()


@asynccontextmanager
async def counting(litter: Litter, **more: object) -> AsyncIterator[str]:
    name = await litter.parent(**more)
    await litter.says(name, f"({COUNTER}) </dev/null >/dev/null 2>&1 & echo started")
    await litter.counted(name)
    yield name


async def test_processes_go_on_in_the_parent_and_in_both_children(litter: Litter) -> None:
    async with counting(litter) as parent:
        await litter.says(parent, "echo before >/session/before; echo disk >~/disk")
        at, pid = await litter.counted(parent)
        kept = await litter.snapshot(parent)
        assert "memory" not in litter.files(kept) or shares_blocks(litter.yard.state)
        family = [parent, *await litter.children(kept, 2)]
        assert "memory" in litter.files(kept)
        assert not litter.files(kept) & {"base", "changes"}
        told_of: list[str] = []
        await litter.provider.prepare(litter.yard.image, SHAPE, told_of.append)
        assert told_of == [], "the template that they stand on is whole"
        told = [await litter.counted(name, beyond=at + 1) for name in family]
        assert {found[1] for found in told} == {pid}
        assert await litter.says(parent, "cat /proc/sys/kernel/hostname") == parent
        ids = set()
        for name in family:
            ids.add(await litter.says(name, "cat /etc/machine-id"))
            assert await litter.says(name, "cat /proc/sys/kernel/hostname /session/before ~/disk") == (
                f"{name}\nbefore\ndisk"
            )
            await litter.says(name, f"echo {name} >/session/own; sync")
            assert (litter.root / name / "own").read_text() == f"{name}\n"
            # The counter writes on, each time to its own machine's directory, with no line lost or doubled.
            lines = (litter.root / name / "log").read_text().split()
            assert lines == [str(number) for number in range(1, len(lines) + 1)]
            assert len(lines) > at
            # What it held open without a name, it holds still.
            assert (await litter.says(name, f"tail -1 /proc/{pid}/fd/6")).isdigit()
        assert len(ids) == 3


@pytest.mark.long("storms")
async def test_a_snapshot_of_a_child_is_a_snapshot(litter: Litter) -> None:
    async with counting(litter) as parent:
        child = await litter.child(await litter.snapshot(parent))
        await litter.says(child, "echo deep >~/deep")
        at, pid = await litter.counted(child)
        temporary = await litter.snapshot(child, temporary=True)
        assert "memory" in litter.files(temporary)
        grandchild = await litter.child(temporary)
        assert (await litter.counted(grandchild, beyond=at + 1))[1] == pid
        assert await litter.says(grandchild, "cat ~/deep") == "deep"
        again = await litter.child(await litter.snapshot(child))
        assert await litter.says(again, "cat ~/deep") == "deep"


@pytest.mark.long("storms")
async def test_a_template_that_is_made_again_stays_for_who_stands_on_it(litter: Litter) -> None:
    async with counting(litter) as parent:
        at, pid = await litter.counted(parent)
        before = await litter.snapshot(parent)
        with (newest_template(litter.yard) / "memory").open("r+b") as memory:
            memory.write(b"\0")
        told_of: list[str] = []
        await litter.provider.prepare(litter.yard.image, SHAPE, told_of.append)
        assert "making it again" in told_of[0]
        after = await litter.snapshot(parent)
        for kept in (before, after):
            assert (await litter.counted(await litter.child(kept), beyond=at + 1))[1] == pid


async def test_a_snapshot_outlives_its_machine_and_the_provider(litter: Litter) -> None:
    async with counting(litter) as parent:
        at, pid = await litter.counted(parent)
        kept = await litter.snapshot(parent)
        await litter.provider.terminate(parent)
        litter.provider = vm_provider(litter.yard.state)
        assert await litter.provider.snapshots() == {kept}
        child = await litter.child(kept)
        assert (await litter.counted(child, beyond=at + 1))[1] == pid
        await litter.provider.aclose()


async def test_a_connection_to_the_door_ends_at_once_in_the_child_and_not_in_the_parent(
    litter: Litter, tmp_path: Path
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
        parent = await litter.parent(door=door)
        script = "exec 3<>/dev/tcp/10.0.2.100/80; echo asked >&3; cat <&3; echo over >/tmp/over"
        await litter.says(parent, f"(bash -c '{script}') </dev/null >/dev/null 2>&1 & echo started")
        with anyio.fail_after(60):
            while not arrived:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        child = await litter.child(await litter.snapshot(parent))
        with anyio.fail_after(30):
            await litter.says(child, "until [ -e /tmp/over ]; do sleep 0.1; done")
        assert await litter.says(parent, "cat /tmp/over 2>/dev/null || echo open") == "open"
        group.cancel_scope.cancel()


async def test_a_child_reaches_its_own_door(litter: Litter, tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.mkdir()
    parent = await litter.parent()
    child = await litter.child(await litter.snapshot(parent), door=door)
    with serve_door(door, "the child's"):
        async with litter.provider.guest(child) as guest:
            answer = await guest.run(ask(litter.provider.capabilities, "/"), timeout=60)
    assert answer.stdout.endswith(b"the child's /"), answer


async def test_a_paused_machine_stands_still_and_goes_on(litter: Litter) -> None:
    async with counting(litter) as parent:
        await litter.provider.pause(parent)
        await litter.provider.pause(parent)
        assert (await litter.provider.get(parent)).status is MachineStatus.READY
        before = (litter.root / parent / "log").read_bytes()
        await anyio.sleep(1)
        assert (litter.root / parent / "log").read_bytes() == before
        server = _server(litter.yard.state, parent)
        await vm_provider(litter.yard.state).resume(parent)
        await litter.provider.resume(parent)
        await litter.counted(parent, beyond=len(before.split()))
        await litter.provider.pause(parent)
        await litter.provider.terminate(parent)
        with anyio.fail_after(30):
            while server.exists():  # noqa: ASYNC110
                await anyio.sleep(0.1)


def _server(state: Path, name: str) -> Path:
    """The process that serves a machine's session."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    socket = next(words[6] for words in lines if words[-1] == str(state / name / "session.sock"))
    for owner in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) == f"socket:[{socket}]" for fd in (owner / "fd").iterdir()):
                return owner
    raise AssertionError(f"nobody serves the session of {name}")


async def test_it_stands_still_for_what_is_done_meanwhile_and_no_longer(litter: Litter) -> None:
    async with counting(litter) as parent:
        count, seen = litter.root / parent / "count", []
        await litter.says(
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
            await litter.provider.snapshot(parent, "never", look)
        assert seen[0] == seen[1]
        assert not await litter.provider.snapshots()
        with anyio.fail_after(60):
            while count.read_text() == seen[1]:  # noqa: ASYNC110
                await anyio.sleep(0.1)


async def test_the_clock_of_a_machine_misses_nothing_of_a_snapshot(litter: Litter) -> None:
    async def long() -> None:
        await anyio.sleep(5)

    parent = await litter.parent()
    frozen = await litter.provider.snapshot(parent, "s-long", long)
    litter.kept.append("s-long")
    assert frozen.seconds >= 5
    before = time.time()
    told = float(await litter.says(parent, "date +%s.%N"))
    assert before - 2 < told < time.time() + 2


async def test_a_full_disk_leaves_the_machine_running_and_nothing_half(litter: Litter) -> None:
    async with counting(litter) as parent:
        at, _ = await litter.counted(parent)
        # A file system that is too small for a snapshot.
        small = litter.yard.state / ".snapshots"
        small.mkdir(exist_ok=True)
        assert (await process.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)])).ok
        try:
            with pytest.raises(NoSpace):
                await litter.provider.snapshot(parent, "full")
            left = [path for path in small.rglob("*") if path.is_file() and path.stat().st_size]
            assert not left, "what is locked is empty"
        finally:
            assert (await process.run(["umount", str(small)])).ok
        await litter.counted(parent, beyond=at + 1)
        child = await litter.child(await litter.snapshot(parent))
        await litter.counted(child, beyond=at + 1)


_MAKER = """
import sys, anyio
from pathlib import Path
from tests.support.vm import vm_provider
anyio.run(vm_provider(Path(sys.argv[1])).snapshot, sys.argv[2], sys.argv[3])
"""


async def test_a_killed_maker_leaves_a_running_machine_and_nothing_that_is_not_found(litter: Litter) -> None:
    async with counting(litter) as parent:
        half = litter.yard.state / ".snapshots"
        for step in (".new-*", ".new-*/state", ".new-*/table.json"):
            at, _ = await litter.counted(parent)
            argv = [sys.executable, "-c", _MAKER, str(litter.yard.state), parent, "killed"]
            async with process.running(argv, cwd=Path(__file__).parents[3], grace=0.0) as maker:
                while maker.returncode is None and not list(half.glob(step)):  # noqa: ASYNC110
                    await anyio.sleep(0.001)
                maker.kill()
            again: QemuProvider = vm_provider(litter.yard.state)
            litter.provider = again
            await litter.counted(parent, beyond=at + 1)
            await again.remove_snapshot("killed")
            assert not await again.snapshots()


async def test_a_snapshot_that_is_not_there(litter: Litter) -> None:
    with pytest.raises(NoSuchSnapshot):
        await litter.provider.boot_from("nothing", "c-nothing", litter.spec("x"))
    with pytest.raises(BadInput):
        await litter.provider.boot_from("../x", "c-nothing", litter.spec("x"))
    await litter.provider.remove_snapshot("nothing")
