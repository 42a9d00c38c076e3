"""The page's own provider and process manager, for the suites that ours pass."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from hiveyard import processes
from hiveyard.core.ports import ProcessManager, Provider
from hiveyard.kit.names import new_id
from tests.contract.conftest import folder, guest, place, shared
from tests.contract.providers import Offer
from tests.contract.rootfs import small_image
from tests.docs_page.page import install, installed
from tests.library.conftest import works
from tests.support.leaks import searched_directory

__all__ = ["folder", "guest", "place", "shared", "works"]


@pytest.fixture(scope="session")
def site() -> Iterator[Path]:
    """Where the page's package is installed; its modules are imported."""
    with searched_directory() as scratch:
        install(scratch)
        with installed(scratch):
            modules = [import_module(f"yard_extras.{name}") for name in ("few", "ask", "plain")]
        yield scratch
        for module in modules:
            del sys.modules[module.__name__]


@pytest.fixture(scope="session")
async def offer(works: None, site: Path) -> AsyncIterator[Offer]:
    with searched_directory() as scratch:
        state, cache = Path(scratch, "state"), Path(scratch, "cache")

        def again() -> Provider:
            made: Provider = import_module("yard_extras.few").Few(state, cache, 20)
            return made

        async def crash(name: str) -> None:
            os.kill(int((state / name / "pid").read_text().split()[0]), signal.SIGKILL)

        async def litter(name: str) -> None:
            (state / name / "home").mkdir(parents=True)

        image = small_image(scratch)
        offer = Offer(provider=again(), image=image, again=again, litter=litter, killed=crash)
        await offer.provider.prepare(image, offer.shape)
        yield offer
        assert not await offer.provider.names()


@pytest.fixture
def manager(site: Path) -> ProcessManager:
    with installed(site):
        return processes.by_name("plain")


@pytest.fixture
def name() -> str:
    return new_id()
