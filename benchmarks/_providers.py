"""Each provider with a state of its own and the user's cache, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hiveyard.core.ports import Provider
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.machines.docker import DockerProvider, DockerSettings
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.paths import default_paths
from tests.support.dockerd import engine_socket

PROVIDERS = ("qemu", "docker", "bubblewrap")


@asynccontextmanager
async def opened(name: str, state: Path) -> AsyncIterator[Provider]:
    """Raises ProviderUnavailable where there is no engine and none can be started."""
    cache = default_paths().cache
    if name == "docker":
        async with engine() as socket:
            yield DockerProvider(state, DockerSettings(socket=str(socket)))
    elif name == "qemu":
        provider = QemuProvider(state=state, cache=cache / "qemu", settings=QemuSettings())
        try:
            yield provider
        finally:
            await provider.aclose()
    else:
        yield BubblewrapProvider(state, cache / "bubblewrap")


@asynccontextmanager
async def engine() -> AsyncIterator[Path]:
    """The socket of the container engine that runs here, else of a private one."""
    async with engine_socket(default_paths().cache / "test-docker") as socket:
        yield socket
