"""Hiveyard as a library: a machine with credentials in it, and an agent's process under a process manager.

It knows ports only: which provider, process manager and agent they are is the caller's choice.
"""

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
