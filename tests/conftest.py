"""What all tests share."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from hiveyard.kit import loop
from tests.support.searching import Searching

# How long examples take to make says what else the machine is doing.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", loop.OPTIONS


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Searching())
    # A runner in the background ignores Ctrl-C, and all it starts would; the tests send it to see what it does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Rows(LoadScopeScheduling):  # type: ignore[misc]
    """What `make real` runs side by side: three rows of tests, each one after the other.

    Emulated VMs want the processors, and two rows of them are what two processors carry; the rest mostly waits, and
    its engine for containers belongs to one process at a time. Some that need neither go where there is time."""

    _VMS = ("qemu", "test_live_fork", "test_recovery", "test_commoner", "tests/images/")
    _SMALL = ("tests/contract/", "tests/processes/", "tests/ways/")
    _ANYWHERE = ("tests/agents/test_conversations", "tests/agents/test_real_programs")

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(self._ANYWHERE):
            return "small VMs"
        if not any(word in nodeid for word in self._VMS):
            return "no VMs"
        return "small VMs" if nodeid.startswith(self._SMALL) else "VMs"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rows | None:
    return Rows(config, log) if config.getvalue("dist") == "loadscope" else None
