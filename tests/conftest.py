"""What all tests share."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from hiveyard.kit import loop

# How long examples take to make says what else the machine is doing.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


# Parts of the tests that may run side by side; what is in none of them does so with all others. Emulated VMs want the
# processors, and two rows of them are what two processors carry; one engine for containers is for one process.
SMALL_VMS = ("contract", "orchestrator", "processes", "ways")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", loop.OPTIONS


def pytest_configure() -> None:
    """A runner in the background ignores Ctrl-C, and all it starts would; the tests send it to see what it does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that boot something, for `make real`."""
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    if "qemu" not in item.nodeid and not item.get_closest_marker("vm"):
        return "without VMs"
    return "small VMs" if item.path.parent.name in SMALL_VMS else "VMs"
