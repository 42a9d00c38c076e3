"""Hiveyard as a library: a machine with credentials in it, and an agent's process under a process manager.

The library depends only on the contracts of `core/ports.py`: the caller chooses the provider, process manager and
agent."""

from hiveyard.library.conversation import Conversation
from hiveyard.library.events import Listener, RuntimeEvent
from hiveyard.library.orchestrator import Orchestrator
from hiveyard.library.prepared import Defaults, Prepared
from hiveyard.library.snapshot import Snapshot
from hiveyard.library.sync import SyncOrchestrator

__all__ = [
    "Conversation",
    "Defaults",
    "Listener",
    "Orchestrator",
    "Prepared",
    "RuntimeEvent",
    "Snapshot",
    "SyncOrchestrator",
]
