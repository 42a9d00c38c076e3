"""Measure the time to the first command in a machine: a VM booted, a VM forked, a container, a namespace.

    python -m benchmarks.machines [--json] [--image REF] [--cold N] [--forks N] [--engine SOCKET]

All are made of one image, in one run. The engine is the one that runs here, else a private one that is started for
this; without either, containers are left out. Two floors stand beside Hiveyard's container: `docker run` as a person
types it, and the same engine asked by its API to create, start and exec.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from aiodocker import Docker
from aiodocker.types import JSONObject

from benchmarks._figures import Figure, Figures
from benchmarks._providers import engine, opened
from benchmarks._timed import Timed, tell
from hiveyard.core.commands import Command
from hiveyard.core.errors import HiveyardError, ProviderError
from hiveyard.core.machines import MachineSpec, Shape
from hiveyard.core.ports import Provider
from hiveyard.images.images import Images
from hiveyard.kit import process
from hiveyard.kit.names import new_id
from hiveyard.machines.docker import DockerProvider, DockerSettings
from hiveyard.machines.docker.container import tag
from hiveyard.machines.docker.engine import engine_errors
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.paths import default_paths

TRUE = Command(argv=("true",))


async def starts(first: Timed, provider: Provider, spec: MachineSpec, n: int) -> Timed:
    """`first` is from nothing to the first command's answer; what is returned is until `boot` returns."""
    ready = Timed("  of these until boot() returns")
    for _ in range(n):
        name = f"b-{new_id()}"

        async def start(name: str = name) -> None:
            await ready.of(lambda: provider.boot(name, spec))
            async with provider.guest(name) as guest:
                await guest.run(TRUE)

        try:
            await first.of(start)
        finally:
            await provider.terminate(name)
    return ready


async def repeated(timed: Timed, work: Callable[[], Awaitable[object]], n: int) -> Timed:
    for _ in range(n):
        await timed.of(work)
    return timed


async def docker_run(socket: Path, image: str) -> None:
    """From nothing to the end of `true`, as a person types it; the container is gone then."""
    words = ["docker", "--host", f"unix://{socket}", "run", "--rm", "--network", "none", image, "true"]
    if not (ran := await process.run(words)).ok:
        raise ProviderError(f"docker run: {ran.error_output()}")


async def engine_alone(timed: Timed, client: Docker, image: str) -> None:
    """Create, start and exec of `true`, as bare as the engine's API has it; removing does not count."""
    made = []

    async def start() -> None:
        body: JSONObject = {"Image": image, "Cmd": ["sleep", "infinity"], "HostConfig": {"NetworkMode": "none"}}
        container = await client.containers.create(body)
        made.append(container)
        await container.start()
        running = await container.exec(["true"])
        async with running.start() as stream:
            while await stream.read_out():
                pass

    try:
        with engine_errors("asking the engine"):
            await timed.of(start)
    finally:
        for container in made:
            await container.delete(force=True)


async def vms(figures: Figures, spec: MachineSpec, options: argparse.Namespace, scratch: Path) -> Figure:
    cache = default_paths().cache / "qemu"
    fork, cold = Timed("qemu, VM forked"), Timed("qemu, VM booted")
    async with opened("qemu", scratch / "f") as forking:
        await forking.prepare(spec.image, spec.shape, tell)
        ready = await starts(fork, forking, spec, options.forks)
    whole = QemuProvider(state=scratch / "c", cache=cache, settings=QemuSettings(templates=False))
    try:
        await starts(cold, whole, spec, options.cold)
    finally:
        await whole.aclose()
    forked = fork.show(figures)
    ready.show(figures)
    figures.ratio("booted / forked", cold.show(figures), forked, aim="30 or more")
    return forked


async def containers(
    figures: Figures, forked: Figure | None, spec: MachineSpec, options: argparse.Namespace, scratch: Path
) -> None:
    image = tag(spec.image.id)
    typed, bare, ours = Timed("docker run"), Timed("the engine alone (floor)"), Timed("docker, Hiveyard's machine")
    async with AsyncExitStack() as stack:
        socket = options.engine or await stack.enter_async_context(engine())
        provider = DockerProvider(scratch / "d", DockerSettings(socket=str(socket)))
        await provider.prepare(spec.image, spec.shape, tell)
        client = await stack.enter_async_context(Docker(url=f"unix://{socket}"))
        await repeated(typed, lambda: docker_run(socket, image), options.forks)
        for _ in range(options.forks):
            await engine_alone(bare, client, image)
        ready = await starts(ours, provider, spec, options.forks)
    run, floor, machine = typed.show(figures), bare.show(figures), ours.show(figures)
    ready.show(figures)
    figures.ratio("Hiveyard's machine / the engine alone", machine, floor)
    if forked is not None:
        figures.ratio("docker run / VM forked", run, forked, aim="1 or more")


async def namespaces(figures: Figures, spec: MachineSpec, options: argparse.Namespace, scratch: Path) -> None:
    started = Timed("bubblewrap")
    async with opened("bubblewrap", scratch / "b") as provider:
        await provider.prepare(spec.image, spec.shape, tell)
        await starts(started, provider, spec, options.forks)
    floor = await repeated(
        Timed("fork and exec of true on the host (floor)"), lambda: process.run(["/bin/true"]), options.forks
    )
    figures.ratio("bubblewrap / floor", started.show(figures), floor.show(figures))


async def measure(options: argparse.Namespace, scratch: Path) -> Figures:
    image = await Images(default_paths().cache).ensure(options.image, tell)
    spec = MachineSpec(image=image, shape=Shape(), session=scratch / "session")
    (scratch / "session").mkdir()
    figures = Figures("machines, to the first command answered")
    forked = None
    try:
        forked = await vms(figures, spec, options, scratch)
    except HiveyardError as error:
        tell(f"VMs are left out: {error.message}; {error.hint}")
    try:
        await containers(figures, forked, spec, options, scratch)
    except HiveyardError as error:
        tell(f"containers are left out: {error.message}; {error.hint}")
    try:
        await namespaces(figures, spec, options, scratch)
    except HiveyardError as error:
        tell(f"namespaces are left out: {error.message}; {error.hint}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--cold", type=int, default=3, help="whole boots")
    parser.add_argument("--forks", type=int, default=20)
    parser.add_argument("--engine", type=Path, help="socket of a Docker engine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        figures = anyio.run(measure, options, Path(scratch))
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
