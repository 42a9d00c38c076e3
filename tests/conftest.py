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


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", loop.OPTIONS


def pytest_configure() -> None:
    """A runner in the background ignores Ctrl-C, and all it starts would; the tests send it to see what it does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
