"""Hiveyard as a library: a machine with credentials in it, and an agent's process under a process manager.

It knows ports only: which provider, process manager and agent they are is the caller's choice.
"""

from hiveyard.orchestrator.blocking import SyncOrchestrator
from hiveyard.orchestrator.conversation import Conversation
from hiveyard.orchestrator.happenings import Listener, RuntimeEvent
from hiveyard.orchestrator.keeping import Snapshot
from hiveyard.orchestrator.orchestrator import Orchestrator
from hiveyard.orchestrator.prepared import Defaults, Prepared

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
