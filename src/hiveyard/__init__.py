"""Hiveyard runs coding agents in isolated machines.

`Orchestrator` and the other names of the library are imported on first use: `hv --help` needs none of them.
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

_MODULES = {
    "HOST": "hiveyard.core.machines",
    "MachineSpec": "hiveyard.core.machines",
    "Orchestrator": "hiveyard.library",
    "SyncOrchestrator": "hiveyard.library",
    "Turn": "hiveyard.core.ports",
}

if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'hiveyard' has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)
