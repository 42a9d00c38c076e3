"""Fixtures and hooks of all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from hiveyard.kit import event_loop
from tests.support import areas
from tests.support.searching import Searching

# Where the environment forbids compiled files, each worker and each daemon of a test would compile all sources anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.disable()  # until the tests are collected

# How long examples take to make says what else the machine is doing.
settings.register_profile("calm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("calm")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", event_loop.OPTIONS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", help="of the tests marked long, run those of this part (see tests/__main__.py)")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if part := config.getoption("--part"):
        kept = [item for item in items if any(part in mark.args for mark in item.iter_markers("long"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def pytest_collection_finish() -> None:
    # Thousands of tests and all modules stay until the end: no collection of garbage has to look at them.
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Searching())
    areas.register(config)
    # A runner in the background ignores Ctrl-C, and all it starts would; the tests send it to see what it does.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Rows(LoadScopeScheduling):  # type: ignore[misc]
    """The rows that `make real` runs side by side. A row's tests run one after the other; a worker that is done takes
    another row.

    Emulated VMs need the processors, and two processors carry two rows of them. The other tests mostly wait, and only
    one process at a time can use their container engine: they are one row. The tests that share a small VM, the agents'
    programs, or a template that they damage are one row each, and so is each file of the others. The longest rows start
    first, so that all end together."""

    _VMS = ("qemu", "test_live_fork", "test_recovery", "test_unprivileged_user", "tests/images/")
    _SHARING = ("tests/contract/", "tests/processes/", "tests/engine/access/")
    _DAMAGING = "tests/machines/qemu/"
    _AGENTS = "tests/agents/"
    _ANYWHERE = "tests/end_to_end/main_job/test_faults.py"
    _LONG = (
        "no VMs",
        "small VMs",
        _AGENTS,
        _DAMAGING,
        _ANYWHERE,
        "tests/end_to_end/sessions/test_agent_vm.py",
        "tests/end_to_end/main_job/test_unprivileged_user.py",
        "tests/images/test_images.py",
        "tests/end_to_end/main_job/test_recovery.py",
        "tests/engine/snapshots/test_live_forks.py",
        "tests/library/test_everywhere.py",
    )

    def _split_scope(self, nodeid: str) -> str:
        if row := next((row for row in (self._AGENTS, self._DAMAGING, self._ANYWHERE) if nodeid.startswith(row)), ""):
            return row
        if not any(word in nodeid for word in self._VMS):
            return "no VMs"
        return "small VMs" if nodeid.startswith(self._SHARING) else nodeid.split("::")[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        rest = (row for row in self._LONG if row in self.workqueue)
        self.workqueue.move_to_end(next(rest, next(iter(self.workqueue))), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rows | None:
    return Rows(config, log) if config.getvalue("dist") == "loadscope" else None
