"""Measure the daily work of an agent on a repository of 20,000 files: on the host, and in a machine of each provider.

    python -m benchmarks.work [--json] [--n N] [--files N] [--image REF] [--provider NAME]...

The operations are done in turn on the host (floor), in each provider's machine below /session, and in the VM on its own
root disk, too: a session's disk should not be slower than that. The repository goes into each machine as it does for a
session. Caches are warm, except after the repository went in.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread

from benchmarks._figures import Figure, Figures
from benchmarks._providers import PROVIDERS, opened
from benchmarks._timed import Timed, tell
from hiveyard import repository
from hiveyard.core.commands import Command
from hiveyard.core.errors import HiveyardError, ProviderError
from hiveyard.core.machines import Image, MachineSpec, Shape
from hiveyard.core.ports import Guest, SessionDisks
from hiveyard.images.images import Images
from hiveyard.kit import process
from hiveyard.kit.names import new_id
from hiveyard.kit.trees import remove_tree
from hiveyard.paths import default_paths

BRANCH = "hv/work"
# Each runs in the repository; `$t` is a directory beside it.
OPERATIONS = {
    "git status": "git status --porcelain",
    "grep -r": "grep -r nowhere . || true",
    "read all files": "find . -type f -not -path './.git/*' -exec cat {} + >/dev/null",
    "tar": "tar -cf - . | cat >/dev/null",
    "create 5,000 files": "mkdir $t; cd $t; for i in $(seq 5000); do echo $i >$i; done",
    "remove 5,000 files": "rm -rf $t",
    "write 100 MB": "head -c 100M /dev/zero >$t.large; sync $t.large",
    "read 100 MB": "cat $t.large >/dev/null",
}
AIMS = {"git status": "25 x docker"}
SHAPE = Shape(memory_mib=2048, cpus=2)


async def written() -> None:
    """Wait until the disk has everything: it must not work for the step before while the next one is measured."""
    await anyio.to_thread.run_sync(os.sync)


def generate(root: Path, files: int) -> None:
    """Write text files of 4 kB on average, 20 in a directory."""
    chance = random.Random(1)
    words = [f"{chance.randrange(1 << 30):x}" for _ in range(4000)]
    for number in range(files):
        directory = root / f"{number // 1000:03}" / f"{number // 20 % 50:02}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:06}.txt").write_text("\n".join(chance.choices(words, k=chance.randrange(1, 900))))


async def run(*argv: str, cwd: Path) -> None:
    done = await process.run(argv, cwd=str(cwd))
    if not done.ok:
        raise ProviderError(f"{done.command()} failed: {done.error_output()}")


class Place:
    """A directory with the repository, in a machine or on the host. `shell` runs a script there."""

    def __init__(self, name: str, shell: Callable[[str], Awaitable[object]]) -> None:
        self.operations = {
            called: Timed(f"{name}: {called}", lambda script=script: shell(script))  # type: ignore[misc]
            for called, script in OPERATIONS.items()
        }


def inside(guest: Guest, directory: str) -> Callable[[str], Awaitable[object]]:
    async def shell(script: str) -> None:
        argv = ("bash", "-ec", f"t={directory}/beside; cd {directory}/repo; {script}")
        done = await guest.run(Command(argv=argv, cwd="/"), timeout=3600)
        if not done.ok:
            raise ProviderError(f"{script}: exit code {done.status}: {done.stderr[-200:]!r}")

    return shell


def outside(directory: Path) -> Callable[[str], Awaitable[object]]:
    async def shell(script: str) -> None:
        await run("bash", "-ec", f"t={directory}/beside; cd {directory}/repo; {script}", cwd=directory)

    return shell


class Work:
    """One measurement of all places, which stay up while `stack` is open."""

    def __init__(self, scratch: Path, options: argparse.Namespace, stack: AsyncExitStack) -> None:
        self.scratch = scratch
        self.options = options
        self.stack = stack
        self.origin = scratch / "origin.git"
        self.base = ""
        self.pushes = {"host": Timed("git clone --no-local on the host (floor)")}
        self.places: dict[str, Place] = {}

    async def repository(self) -> None:
        tell(f"generating a repository of {self.options.files} files")
        user, host = self.scratch / "user", self.scratch / "host"
        await anyio.to_thread.run_sync(generate, user, self.options.files)
        await run("git", "init", "-q", "-b", "main", cwd=user)
        for name, value in (("user.name", "Ada"), ("user.email", "ada@example.com")):
            await run("git", "config", name, value, cwd=user)
        await run("git", "add", ".", cwd=user)
        await run("git", "-c", "gc.auto=0", "commit", "-qm", "All", cwd=user)
        await run("git", "gc", "-q", cwd=user)
        taken = await repository.take(repository.parse_source(str(user)), self.origin)
        self.base = taken.base
        host.mkdir()
        for number in range(self.options.n):
            target = host / ("repo" if number == 0 else "again")
            argv = ("git", "clone", "-q", "--no-local", str(user), str(target))
            await written()
            await self.pushes["host"].of(lambda argv=argv: run(*argv, cwd=host))  # type: ignore[misc]
            await anyio.to_thread.run_sync(lambda: remove_tree(host / "again", quiet=True))
        self.places["host"] = Place("host", outside(host))

    async def machine(self, name: str, image: Image) -> None:
        provider = await self.stack.enter_async_context(opened(name, self.scratch / name))
        await provider.prepare(image, SHAPE, tell)
        spec, called = MachineSpec(image=image, shape=SHAPE), f"b-{new_id()}"
        self.pushes[name] = Timed(f"{name}: the repository goes in")
        for number in range(self.options.n):
            tree, disk = self.scratch / name / f"tree{number}", self.scratch / name / f"disk{number}"
            tree.mkdir(parents=True)

            async def push(tree: Path = tree, disk: Path = disk) -> None:
                await repository.checkout(self.origin, tree, base=self.base, branch=BRANCH)
                if isinstance(provider, SessionDisks):
                    await provider.make_disk(disk, tree)

            await written()
            await self.pushes[name].of(push)
            last = number == self.options.n - 1
            if isinstance(provider, SessionDisks):
                spec = MachineSpec(image=image, shape=SHAPE, disk=disk)
                await anyio.to_thread.run_sync(lambda tree=tree: remove_tree(tree))  # type: ignore[misc]
            else:
                spec = MachineSpec(image=image, shape=SHAPE, session=tree)
            if not last:
                await anyio.to_thread.run_sync(lambda path=spec.disk or spec.session: remove_tree(path))  # type: ignore[misc]
        self.stack.push_async_callback(provider.terminate, called)
        await provider.boot(called, spec)
        guest = await self.stack.enter_async_context(provider.guest(called))
        self.places[name] = Place(name, inside(guest, "/session"))
        if name == "qemu":
            begun = time.monotonic()
            await guest.run(Command(argv=("bash", "-c", "mkdir ~/own; cp -a /session/repo ~/own/"), cwd="/"))
            tell(f"copied to the VM's root disk in {time.monotonic() - begun:.1f} s")
            self.places["root disk"] = Place("qemu, own root disk", inside(guest, "/home/agent/own"))

    async def operations(self) -> None:
        for number in range(self.options.n + 1):
            for name in OPERATIONS:
                for place in self.places.values():
                    await place.operations[name].once()
                    if number == 0:  # caches are cold
                        place.operations[name].seconds.clear()
            tell(f"round {number} of {self.options.n} done")


def show(work: Work, figures: Figures) -> None:
    pushes = {name: timed.show(figures) for name, timed in work.pushes.items()}
    for name in pushes:
        if name != "host":
            aim = "2 x docker" if name == "qemu" else "1.5"
            figures.ratio(f"{name}: the repository goes in / floor", pushes[name], pushes["host"], aim=aim)
    for called in OPERATIONS:
        found: dict[str, Figure] = {name: place.operations[called].show(figures) for name, place in work.places.items()}
        if "qemu" in found:
            figures.ratio(f"qemu: {called} / own root disk", found["qemu"], found["root disk"], aim="1.3")
        if "qemu" in found and "docker" in found:
            figures.ratio(f"qemu: {called} / docker", found["qemu"], found["docker"], aim=AIMS.get(called, ""))


async def measure(scratch: Path, options: argparse.Namespace) -> Figures:
    image = await Images(default_paths().cache).ensure(options.image, tell)
    figures = Figures("work")
    async with AsyncExitStack() as stack:
        work = Work(scratch, options, stack)
        await work.repository()
        for name in options.provider or PROVIDERS:
            try:
                await work.machine(name, image)
            except HiveyardError as error:
                tell(f"{name} is left out: {error.message}; {error.hint}")
        await work.operations()
    show(work, figures)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure work on a large repository.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--n", type=int, default=5, help="how often each operation is done")
    parser.add_argument("--files", type=int, default=20_000, help="files of the repository")
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--provider", action="append", choices=PROVIDERS, help="instead of all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        figures = anyio.run(measure, Path(scratch), options)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
