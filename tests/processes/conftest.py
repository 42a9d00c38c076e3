"""The process managers, each tried in a machine of every provider."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hiveyard.core.ports import ProcessManager
from hiveyard.kit.names import new_id
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from tests.contract.conftest import guest, local_offer, shared

__all__ = ["guest", "local_offer", "shared"]

MANAGERS: dict[str, Callable[[], ProcessManager]] = {"detached": Detached, "tmux": Tmux}


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
