"""The parts that the daemon wired together, as one object that the engine's modules take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import anyio

from hiveyard.core.ports import ProcessManager, Provider
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.engine.access.host_ports import HostPorts
from hiveyard.engine.access.ssh_keys import SshKeys
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.placement.admission import Admission
from hiveyard.engine.placement.image_stock import ImageStock
from hiveyard.engine.settings import AgentSettings, EngineSettings, PortSettings
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.clock import Clock

MAX_RESCUES = 2
"""Machines at once that only read what lost ones left: after a restart of the host all sessions need one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The daemon's parts. `manager` runs processes without a terminal, `terminals` those with one. `sessions` contains
    one directory per session, `doors` one per open door (short paths: they hold sockets)."""

    event_log: EventLog
    providers: Mapping[str, Provider]
    manager: ProcessManager
    terminals: ProcessManager
    images: ImageStock
    doors: Doors
    keys: Keys
    settings: EngineSettings
    agents: Mapping[str, AgentSettings]
    ports: PortSettings
    host_ports: HostPorts
    admission: Admission
    ssh_keys: SshKeys
    clock: Clock
    sessions: Path
    door_directory: Path
    rescues: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(MAX_RESCUES), init=False)
    _collect_locks: WeakValueDictionary[str, anyio.Lock] = field(default_factory=WeakValueDictionary, init=False)

    def collect_lock(self, id: str) -> anyio.Lock:
        """Return the lock held while a session's work is being collected: guest and host have one place for it."""
        return self._collect_locks.setdefault(id, anyio.Lock())

    def workspace(self, id: str) -> Workspace:
        return Workspace(self.sessions / id)

    def door_path(self, id: str) -> Path:
        return self.door_directory / id
