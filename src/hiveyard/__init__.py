"""Hiveyard runs coding agents in isolated machines.

`Orchestrator` and what goes with it are brought in when they are first asked for: `hv --help` wants none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiveyard.core.machines import HOST, MachineSpec
    from hiveyard.core.ports import Turn
    from hiveyard.library import Orchestrator, SyncOrchestrator

__version__ = "0.1.0"
__all__ = ["HOST", "MachineSpec", "Orchestrator", "SyncOrchestrator", "Turn", "__version__"]

_HOMES = {
    "HOST": "hiveyard.core.machines",
    "MachineSpec": "hiveyard.core.machines",
    "Orchestrator": "hiveyard.library",
    "SyncOrchestrator": "hiveyard.library",
    "Turn": "hiveyard.core.ports",
}

if not TYPE_CHECKING:  # else every name would do for a type checker

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'hiveyard' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
