"""States, and the tables of the events that change them. Nothing else changes a state."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove
from hiveyard.core.machines import MachineStatus

S = TypeVar("S", bound=enum.StrEnum)


class TaskState(enum.StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return not NEXT_TASK[self]


class Phase(enum.StrEnum):
    CREATED = "created"
    PREPARING = "preparing"
    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


AT_WORK = (Phase.CREATED, Phase.PREPARING, Phase.RUNNING)
"""The phases in which work for a session is in progress, or will follow."""


class Activity(enum.StrEnum):
    """The current activity of a running session. `waiting` means for the user; waiting for a model is `thinking`."""

    IDLE = "idle"
    THINKING = "thinking"
    EXECUTING = "executing"
    WAITING = "waiting"
    PAUSED = "paused"


class TurnState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class AskState(enum.StrEnum):
    OPEN = "open"
    ANSWERED = "answered"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class MessageState(enum.StrEnum):
    """The state of a message. Only the operator's mail is `read`: a member reads what it is given."""

    PENDING = "pending"
    HELD = "held"
    DELIVERED = "delivered"
    READ = "read"
    DROPPED = "dropped"


_TASK_ENDS: dict[type[e.Body], TaskState] = {
    e.TaskFailed: TaskState.FAILED,
    e.TaskCancelled: TaskState.CANCELLED,
}
NEXT_TASK: Mapping[TaskState | None, Mapping[type[e.Body], TaskState]] = {
    None: {e.TaskCreated: TaskState.PENDING},
    TaskState.PENDING: {e.TaskAssigned: TaskState.ASSIGNED, **_TASK_ENDS},
    TaskState.ASSIGNED: {e.TaskStarted: TaskState.RUNNING, **_TASK_ENDS},
    TaskState.RUNNING: {e.TaskCompleted: TaskState.COMPLETED, **_TASK_ENDS},
    TaskState.COMPLETED: {},
    TaskState.FAILED: {},
    TaskState.CANCELLED: {},
}

_PHASE_ENDS: dict[type[e.Body], Phase] = {
    e.SessionStopped: Phase.STOPPED,
    e.SessionFailed: Phase.FAILED,
}
NEXT_PHASE: Mapping[Phase | None, Mapping[type[e.Body], Phase]] = {
    None: {e.SessionCreated: Phase.CREATED},
    Phase.CREATED: {e.SessionPreparing: Phase.PREPARING, **_PHASE_ENDS},
    Phase.PREPARING: {e.SessionRunning: Phase.RUNNING, **_PHASE_ENDS},
    Phase.RUNNING: {e.SessionRewound: Phase.PREPARING, e.SessionFinished: Phase.FINISHED, **_PHASE_ENDS},
    Phase.STOPPED: {
        e.SessionPreparing: Phase.PREPARING,
        e.SessionRewound: Phase.PREPARING,
        e.SessionFailed: Phase.FAILED,
    },
    # The session of a task that is over can go on as a session of its own.
    Phase.FINISHED: {e.SessionPreparing: Phase.PREPARING},
    Phase.FAILED: {e.SessionPreparing: Phase.PREPARING},
}

NEXT_MACHINE: Mapping[MachineStatus | None, Mapping[type[e.Body], MachineStatus]] = {
    None: {e.MachineBooting: MachineStatus.BOOTING},
    MachineStatus.BOOTING: {
        e.MachineReady: MachineStatus.READY,
        e.MachineFailed: MachineStatus.ERROR,
        e.MachineStopping: MachineStatus.STOPPING,
    },
    MachineStatus.READY: {e.MachineStopping: MachineStatus.STOPPING, e.MachineFailed: MachineStatus.ERROR},
    MachineStatus.STOPPING: {e.MachineStopped: MachineStatus.STOPPED, e.MachineFailed: MachineStatus.ERROR},
    # A machine of the same name may be made again: the name comes from the task or session, not from the attempt.
    MachineStatus.STOPPED: {e.MachineBooting: MachineStatus.BOOTING},
    MachineStatus.ERROR: {e.MachineStopping: MachineStatus.STOPPING, e.MachineBooting: MachineStatus.BOOTING},
}

NEXT_TURN: Mapping[TurnState | None, Mapping[type[e.Body], TurnState]] = {
    None: {e.TurnCreated: TurnState.PENDING, e.TurnStarted: TurnState.RUNNING},
    TurnState.PENDING: {e.TurnStarted: TurnState.RUNNING, e.TurnEnded: TurnState.ENDED},
    TurnState.RUNNING: {e.TurnEnded: TurnState.ENDED},
    TurnState.ENDED: {},
}

NEXT_ASK: Mapping[AskState | None, Mapping[type[e.Body], AskState]] = {
    None: {e.AgentAsked: AskState.OPEN, e.AskOpened: AskState.OPEN},
    AskState.OPEN: {
        e.AskAnswered: AskState.ANSWERED,
        e.AskExpired: AskState.EXPIRED,
        e.AskWithdrawn: AskState.WITHDRAWN,
    },
    AskState.ANSWERED: {},
    AskState.EXPIRED: {},
    AskState.WITHDRAWN: {},
}

NEXT_MESSAGE: Mapping[MessageState | None, Mapping[type[e.Body], MessageState]] = {
    None: {e.MessageSent: MessageState.PENDING},
    MessageState.PENDING: {
        e.MessageHeld: MessageState.HELD,
        e.MessageDelivered: MessageState.DELIVERED,
        e.MessageRead: MessageState.READ,
    },
    MessageState.HELD: {e.MessageReleased: MessageState.PENDING, e.MessageDropped: MessageState.DROPPED},
    MessageState.DELIVERED: {},
    MessageState.READ: {},
    MessageState.DROPPED: {},
}

# An activity is for display, and nothing depends on it: any event may set it, whatever it was before.
# A session that is resumed in the middle of a turn is `thinking` (projections.py).
ACTIVITY: Mapping[type[e.Body], Activity] = {
    e.TurnStarted: Activity.THINKING,
    e.AgentPrompted: Activity.THINKING,
    e.AgentAsked: Activity.WAITING,
    e.AskAnswered: Activity.THINKING,
    e.SessionPaused: Activity.PAUSED,
    e.SessionUnpaused: Activity.IDLE,
    e.SessionRewound: Activity.IDLE,
    e.AgentText: Activity.THINKING,
    e.AgentThinking: Activity.THINKING,
    e.AgentToolCalled: Activity.EXECUTING,
    e.AgentToolReturned: Activity.THINKING,
    e.AgentRetrying: Activity.THINKING,
    e.AgentRateLimited: Activity.THINKING,
    e.AgentEnded: Activity.IDLE,
    e.TurnEnded: Activity.IDLE,
    e.SessionStopped: Activity.IDLE,
    e.SessionFinished: Activity.IDLE,
    e.SessionFailed: Activity.IDLE,
}


def step(table: Mapping[S | None, Mapping[type[e.Body], S]], state: S | None, body: e.Body, what: str) -> S:
    """Return the state after an event. Raises IllegalMove, naming `what`, if the table has no such transition."""
    try:
        return table[state][type(body)]
    except KeyError:
        raise IllegalMove(f"{what} is {state or 'unknown'}: {body.type} cannot happen now") from None
