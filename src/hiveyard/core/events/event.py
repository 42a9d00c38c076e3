"""A body with its position in the journal."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from hiveyard.core.events.agent import AgentEvent
from hiveyard.core.events.door import DoorEvent
from hiveyard.core.events.hive import HiveEvent
from hiveyard.core.events.live import LiveEvent
from hiveyard.core.events.machine import MachineEvent
from hiveyard.core.events.port import PortEvent
from hiveyard.core.events.session import SessionEvent
from hiveyard.core.events.snapshot import SnapshotEvent
from hiveyard.core.events.step import StepEvent
from hiveyard.core.events.task import TaskEvent
from hiveyard.core.events.turn import TurnEvent

AnyBody = (
    TaskEvent
    | SessionEvent
    | SnapshotEvent
    | PortEvent
    | MachineEvent
    | TurnEvent
    | StepEvent
    | AgentEvent
    | LiveEvent
    | DoorEvent
    | HiveEvent
)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A body with its position: `seq` increases over all sessions. `at` is seconds since the epoch.

    `raw` is the line of the agent's output that the event came from, on the first event of each line."""

    SCHEMA: ClassVar[int] = 1

    seq: int
    at: float
    session: str
    turn: int | None = None
    body: AnyBody
    raw: bytes | None = None
