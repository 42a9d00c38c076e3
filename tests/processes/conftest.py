"""The process managers, each tried in a machine of every provider."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.ports import ProcessManager
from hiveyard.kit.names import new_id
from hiveyard.processes.detached import Detached
from hiveyard.processes.pm2 import Pm2
from hiveyard.processes.tmux import Tmux
from tests.contract.conftest import guest, offered, parameters, shared
from tests.contract.providers import LOCAL, Offer
from tests.contract.rootfs import small_image

__all__ = ["guest", "shared"]

ROOT = Path(__file__).parents[2]
MANAGERS: dict[str, Callable[[], ProcessManager]] = {"detached": Detached, "tmux": Tmux, "pm2": Pm2}


@pytest.fixture(scope="session", params=parameters(LOCAL))
async def offer(request: pytest.FixtureRequest) -> AsyncIterator[Offer]:
    """VMs have PM2 in their image; the small one of the others gets it."""
    async with offered(request.param) as offer:
        if request.param == "qemu":
            yield offer
            return
        async with _with_pm2(offer) as able:
            yield able


@asynccontextmanager
async def _with_pm2(offer: Offer) -> AsyncIterator[Offer]:
    npm = (await anyio.run_process([str(ROOT / "scripts/pm2")])).stdout.decode().strip()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        image = replace(small_image(Path(scratch), npm=Path(npm)), id=new_id())
        await offer.provider.prepare(image, offer.shape)
        yield replace(offer, image=image)
        await offer.provider.release_image(image.id)


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> ProcessManager:
    return MANAGERS[request.param]()


@pytest.fixture
def name() -> str:
    """A name for a process that no other test uses."""
    return new_id()


@pytest.fixture
def flood(request: pytest.FixtureRequest) -> int:
    """Bytes of a flood: as much as an emulated machine can write in a minute, else 1 GiB."""
    return (64 << 20) if "qemu" in request.node.callspec.id else (1 << 30)


@pytest.fixture
def crowd(request: pytest.FixtureRequest) -> int:
    """How many processes are many: an emulated machine takes seconds to start each."""
    return 12 if "qemu" in request.node.callspec.id else 50
