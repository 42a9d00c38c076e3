"""Forking a VM that is in the middle of something: how long it stands still, when its children go on, what they take.

    python -m benchmarks.forks [--json] [--image REF] [--children N]

The machine writes to its door all the time; the first line that arrives at a child's door is its first event.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from benchmarks._figures import Figures
from benchmarks._providers import opened
from benchmarks._timed import Timed, tell
from hiveyard.core.commands import Command
from hiveyard.core.machines import MachineSpec, Shape
from hiveyard.images.images import Images
from hiveyard.kit.names import new_id
from hiveyard.machines.qemu import QemuProvider
from hiveyard.machines.qemu.vm import labels
from hiveyard.paths import default_paths

_BUSY = """
(while :; do date >/dev/tcp/10.0.2.100/80; sleep 0.05; done) </dev/null >/dev/null 2>&1 &
head -c 64M /dev/urandom >/tmp/x
"""


def memory(*names: str) -> float:
    """MiB of the machines' QEMU processes, each page shared among those that map it."""
    total = 0
    for label, vm in labels():
        if label.rpartition(":")[2] in names:
            rollup = Path(f"/proc/{vm.pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total / 1024


async def forked(figures: Figures, provider: QemuProvider, base: MachineSpec, root: Path, children: int) -> None:
    still, first = Timed("parent stands still"), Timed("boot_from to a child's first event")
    unfolded = Timed("the same, of a snapshot that is kept")
    parent, kept, stays = f"b-{new_id()}", f"b-{new_id()}", f"b-{new_id()}"
    names = [parent]
    try:
        async with door(root / parent):
            await provider.boot(parent, _spec(base, root / parent))
            async with provider.guest(parent) as guest:
                await guest.run(Command(shell=_BUSY), timeout=120)
            alone = memory(parent)
            taken = await provider.snapshot(parent, kept, temporary=True)
        still.seconds.append(taken.seconds)
        for _ in range(children):
            child = f"b-{new_id()}"
            names.append(child)
            await first.of(lambda child=child: _first(provider, base, root, kept, child))  # type: ignore[misc]
        still.show(figures, aim="1 s per GiB used")
        first.show(figures, aim="1 s")
        one = figures.mib("memory of the parent alone", alone)
        five = figures.mib(f"memory of the parent and {children} children", memory(*names), n=len(names))
        figures.ratio("all of them / one", five, one, aim="2 or less")
        figures.mib("the snapshot on disk", taken.size / (1 << 20))
        taken = await provider.snapshot(parent, stays)
        figures.mib("one that is kept, on disk", taken.size / (1 << 20))
        names.append(child := f"b-{new_id()}")
        await unfolded.of(lambda: _first(provider, base, root, stays, child))
        unfolded.show(figures)
    finally:
        for name in names:
            await provider.terminate(name)
        for snapshot in (kept, stays):
            await provider.remove_snapshot(snapshot)


@asynccontextmanager
async def door(place: Path) -> AsyncIterator[anyio.Event]:
    """A door that listens in the directory `place`, and the event that something arrived there."""
    place.mkdir()
    arrived = anyio.Event()

    async def take(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
                arrived.set()

    listener = await anyio.create_unix_listener(place / "door.sock", mode=0o666)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, take)
        yield arrived
        group.cancel_scope.cancel()


def _spec(base: MachineSpec, place: Path) -> MachineSpec:
    return MachineSpec(image=base.image, shape=base.shape, door=place)


async def _first(provider: QemuProvider, base: MachineSpec, root: Path, kept: str, child: str) -> None:
    async with door(root / child) as arrived:
        await provider.boot_from(kept, child, _spec(base, root / child))
        with anyio.fail_after(60):
            await arrived.wait()


async def measure(options: argparse.Namespace, scratch: Path) -> Figures:
    image = await Images(default_paths().cache).ensure(options.image, tell)
    base = MachineSpec(image=image, shape=Shape())
    figures = Figures("forking a running VM")
    async with opened("qemu", scratch / "state") as provider:
        assert isinstance(provider, QemuProvider)
        await provider.prepare(image, base.shape, tell)
        await forked(figures, provider, base, scratch, options.children)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--children", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        figures = anyio.run(measure, options, Path(scratch))
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
