"""Define the providers that the contract suite runs on.

To add one: write an async context manager factory that takes an empty scratch directory and yields an `Offer`, and
list it in CASES. The suite calls `prepare` itself.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import anyio
import httpx2
import pytest
from aiodocker import Docker
from aiodocker.types import JSONObject

from hiveyard.core.machines import Image, MachineSpec, Network, Shape
from hiveyard.core.ports import Provider
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.machines.docker import DockerProvider, DockerSettings
from hiveyard.machines.docker.container import tag
from hiveyard.machines.external import ExternalProvider
from hiveyard.machines.morph import MorphProvider, MorphSettings, morph_image
from hiveyard.machines.qemu import QemuProvider
from hiveyard.paths import default_paths
from tests.support.dockerd import engine_socket
from tests.support.morph_cloud import Cloud, served
from tests.support.morph_front import judged
from tests.support.morph_gateway import gateway
from tests.support.prism import morph_spec
from tests.support.vm import vm_image, vm_pid, vm_provider

from .rootfs import small_image

SMALL = Shape(memory_mib=512)
CLOUDY = Shape(memory_mib=512, cpus=1, disk_gib=4)
MORPH_KEY = "MORPH_API_KEY"
TWIN = "fedcba9876543210"
SAMPLE = (sys.executable, str(Path(__file__).parents[2] / "examples" / "provider.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A provider that works on this host, with the functions that the suite needs.

    `again` creates another provider object on the same state, as a restarted daemon does. `litter` leaves what a
    daemon leaves that dies during `boot`. `killed` ends a machine from outside, as its host might, and `twin` is the id
    of one more image; both are None if that is not possible. `sets` says whether a machine takes the environment of
    its image when it boots.
    """

    provider: Provider
    image: Image
    again: Callable[[], Provider]
    litter: Callable[[str], Awaitable[None]]
    killed: Callable[[str], Awaitable[None]] | None
    twin: str | None = TWIN
    shape: Shape = SMALL
    ttl: int | None = None
    sets: bool = True

    @property
    def crash(self) -> Callable[[str], Awaitable[None]]:
        """Kill a machine from outside, or skip the test if that is not possible."""
        if self.killed is None:
            pytest.skip(f"nobody but {self.provider.name} itself can kill one of its machines")
        return self.killed

    @property
    def local(self) -> bool:
        """Whether its machines share directories with this host and can be cut off from the outside."""
        return not self.provider.capabilities.remote

    def spec(self, image: Image | None = None) -> MachineSpec:
        """Return the spec of a machine without shared directories."""
        network = Network.DOOR if self.local else Network.OPEN
        return MachineSpec(image=image or self.image, shape=self.shape, network=network, ttl=self.ttl)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the suite. `mark` is set on its tests: `real` for VMs and containers, `cloud` if it costs money."""

    open: Callable[[Path], AbstractAsyncContextManager[Offer]]
    mark: Literal["real", "cloud"] | None = None


@asynccontextmanager
async def bubblewrap(scratch: Path) -> AsyncIterator[Offer]:
    state, cache = scratch / "state", scratch / "cache"

    async def crash(name: str) -> None:
        os.kill(int((state / name / "pid").read_text().split()[0]), signal.SIGKILL)

    async def litter(name: str) -> None:
        (state / name / "home").mkdir(parents=True)
        (state / name / "machine.json.half").write_bytes(b"{")

    def again() -> Provider:
        return BubblewrapProvider(state, cache)

    yield Offer(provider=again(), image=small_image(scratch), again=again, litter=litter, killed=crash)


@asynccontextmanager
async def docker(scratch: Path) -> AsyncIterator[Offer]:
    state = scratch / "state"
    # An engine has one store of images for all its users: with an id of its own the image can be removed.
    image = replace(small_image(scratch), id=new_id())
    async with engine_socket(default_paths().cache / "test-docker") as socket:
        settings = DockerSettings(socket=str(socket))

        def again() -> Provider:
            return DockerProvider(state, settings)

        async def crash(name: str) -> None:
            async with Docker(url=f"unix://{socket}") as client:
                made = await client.containers.get(container_name(state, name))
                os.kill(made["State"]["Pid"], signal.SIGKILL)

        async def litter(name: str) -> None:
            # As if the daemon died between `create` and `start`.
            labels = {"hiveyard.installation": installation(state), "hiveyard.machine": name}
            body: JSONObject = {"Image": tag(image.id), "Cmd": ["bash"], "Labels": labels}
            async with Docker(url=f"unix://{socket}") as client:
                await client.containers.create(body, name=container_name(state, name))

        provider = again()
        yield Offer(provider=provider, image=image, again=again, litter=litter, killed=crash)
        await provider.release_image(image.id)


@asynccontextmanager
async def qemu(scratch: Path) -> AsyncIterator[Offer]:
    state = scratch / "state"
    made: list[QemuProvider] = []

    def again() -> Provider:
        made.append(vm_provider(state))
        return made[-1]

    async def crash(name: str) -> None:
        os.kill(vm_pid(state, name), signal.SIGKILL)

    async def litter(name: str) -> None:
        # As if the daemon died between creating the disk and starting QEMU.
        (state / name / "run").mkdir(parents=True)
        (state / name / "run" / "disk.qcow2").write_bytes(b"QFI")

    offer = Offer(provider=again(), image=await vm_image(), again=again, litter=litter, killed=crash, twin=None)
    yield replace(offer, sets=False)
    for provider in made:
        await provider.aclose()


@asynccontextmanager
async def morph(scratch: Path) -> AsyncIterator[Offer]:
    """The fake service of the tests, behind Prism if the service's API description is available. It needs root because
    its machines do."""
    if os.geteuid() != 0:
        pytest.skip("the fake Morph Cloud makes its machines as root")
    cloud = Cloud(scratch / "cloud", "morph_Zq8TestSecret", ("5ma11", TWIN))
    made: list[MorphProvider] = []
    spec = morph_spec()
    with closing(cloud), served(cloud.app()) as direct, judged(spec, direct) if spec else nullcontext(direct) as url:
        async with gateway(cloud) as (address, host_key):
            settings = MorphSettings(url=url, patience=5.0, ssh_gateway=address, ssh_host_key=host_key)

            def again() -> MorphProvider:
                made.append(MorphProvider(scratch / "state", lambda: Secret(cloud.key), settings))
                return made[-1]

            async def crash(name: str) -> None:
                os.kill(cloud.machine(name).vm.pid, signal.SIGKILL)

            async def litter(name: str) -> None:
                await half_made(url, Secret(cloud.key), "5ma11", scratch / "state", name)

            image = morph_image("5ma11")
            yield Offer(provider=again(), image=image, again=again, litter=litter, killed=crash, sets=False)
            for provider in made:
                await provider.aclose()


@asynccontextmanager
async def morph_cloud(scratch: Path) -> AsyncIterator[Offer]:
    """The real service: `pytest -m cloud`, with its key in the environment. It ends machines by itself later."""
    key = Secret(os.environ[MORPH_KEY])
    settings = MorphSettings(url=os.environ.get("MORPH_BASE_URL", MorphSettings().url))
    image = morph_image("morphvm-minimal")
    made: list[MorphProvider] = []

    def again() -> MorphProvider:
        made.append(MorphProvider(scratch / "state", lambda: key, settings))
        return made[-1]

    async def litter(name: str) -> None:
        await half_made(settings.url, key, image.id, scratch / "state", name)

    provider = again()
    try:
        offer = Offer(provider=provider, image=image, again=again, litter=litter, killed=None, twin=None)
        yield replace(offer, sets=False, shape=CLOUDY, ttl=3600)
    finally:
        with anyio.CancelScope(shield=True):
            for name in await provider.names():
                await provider.terminate(name)
            await provider.release_image(image.id)
            for one in made:
                await one.aclose()


async def half_made(url: str, key: Secret, image: str, state: Path, name: str) -> None:
    """Create an instance as a daemon leaves it that dies before it terminates the instance."""
    own = {"hiveyard-installation": installation(state), "hiveyard-machine": name}
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {key.reveal()}"}, timeout=60) as client:
        done = await client.post(f"{url}/image/{image}/boot", json={"metadata": own, "ttl_seconds": 600})
        assert done.status_code == 200


@asynccontextmanager
async def external(scratch: Path) -> AsyncIterator[Offer]:
    """The sample of docs/external-provider.md, as a separate program for each provider object."""
    state = scratch / "state"
    made: list[ExternalProvider] = []

    def again() -> ExternalProvider:
        made.append(ExternalProvider("external", SAMPLE, state, env={"PATH": os.environ["PATH"]}))
        return made[-1]

    async def crash(name: str) -> None:
        os.kill(int((state / "machines" / name / "pid").read_text().split()[0]), signal.SIGKILL)

    async def litter(name: str) -> None:
        (state / "machines" / name / "home").mkdir(parents=True)

    yield Offer(provider=again(), image=small_image(scratch), again=again, litter=litter, killed=crash)
    for provider in made:
        await provider.aclose()


def installation(state: Path) -> str:
    return (state / "installation").read_text()


def container_name(state: Path, name: str) -> str:
    return f"hiveyard-{installation(state)}-{name}"


CASES: dict[str, Case] = {
    "bubblewrap": Case(open=bubblewrap),
    "docker": Case(open=docker, mark="real"),
    "qemu": Case(open=qemu, mark="real"),
    "morph": Case(open=morph, mark="real"),
    "external": Case(open=external),
}
LOCAL = {name: case for name, case in CASES.items() if name not in ("morph", "external")}
if os.environ.get(MORPH_KEY):
    CASES["morph-cloud"] = Case(open=morph_cloud, mark="cloud")
