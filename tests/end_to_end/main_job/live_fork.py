"""`python live_fork.py ROOTFS`: boot a VM of an image, fork it while it counts, and print what the child knows.

Run by who has no rights on the host, with a state and a cache in their home.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from hiveyard.core.commands import Command
from hiveyard.core.machines import Image, MachineSpec, Shape
from hiveyard.machines.qemu import QemuProvider, QemuSettings

COUNTER = (
    "(i=0; while :; do i=$((i+1)); echo $i >/dev/shm/count; sleep 0.1; done) >/dev/null 2>&1 & echo kept >/dev/shm/x"
)
ASK = """
before=$(cat /dev/shm/count); for _ in $(seq 100); do sleep 0.1; (($(cat /dev/shm/count) > before)) && break; done
(($(cat /dev/shm/count) > before)) && echo counted on
echo "$(cat /dev/shm/x) in memory"; cat /proc/sys/kernel/hostname
"""


async def main(rootfs: Path) -> None:
    provider = QemuProvider(state=Path.home() / "state", cache=Path.home() / "cache", settings=QemuSettings())
    spec = MachineSpec(image=Image(id=rootfs.parent.name, name="vm", rootfs=rootfs), shape=Shape(memory_mib=512))
    await provider.prepare(spec.image, spec.shape, print)
    try:
        await provider.boot("parent", spec)
        async with provider.guest("parent") as guest:
            assert (await guest.run(Command(shell=COUNTER))).ok
        await provider.snapshot("parent", "moment")
        await provider.boot_from("moment", "child", spec)
        async with provider.guest("child") as guest:
            print((await guest.run(Command(shell=ASK))).stdout.decode(), end="")
    finally:
        for name in await provider.names():
            await provider.terminate(name)
        await provider.remove_snapshot("moment")
        await provider.aclose()


anyio.run(main, Path(sys.argv[1]))
