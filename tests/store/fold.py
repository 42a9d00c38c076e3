"""Compute the rows that must follow from a list of events, as plain dictionaries without a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.core.machines import MachineStatus
from hiveyard.core.states import (
    ACTIVITY,
    NEXT_MACHINE,
    NEXT_PHASE,
    NEXT_TASK,
    NEXT_TURN,
    Activity,
    Phase,
    TaskState,
    TurnState,
    step,
)
from hiveyard.core.usage import Usage
from hiveyard.store import views

_TASK = (e.TaskCreated, e.TaskAssigned, e.TaskStarted, e.TaskCompleted, e.TaskFailed, e.TaskCancelled)
_SESSION = (
    e.SessionCreated,
    e.SessionPreparing,
    e.SessionRunning,
    e.SessionRewound,
    e.SessionStopped,
    e.SessionFinished,
    e.SessionFailed,
)


@dataclass
class States:
    tasks: dict[str, TaskState] = field(default_factory=dict)
    phases: dict[str, Phase] = field(default_factory=dict)
    activities: dict[str, Activity] = field(default_factory=dict)
    machines: dict[str, MachineStatus] = field(default_factory=dict)
    turns: dict[tuple[str, int], TurnState] = field(default_factory=dict)
    spent: dict[str, Usage] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    ports: dict[int, tuple[str, int]] = field(default_factory=dict)
    snapshots: dict[str, tuple[str, str]] = field(default_factory=dict)


def fold(events: Iterable[e.Event]) -> States:
    states = States()
    for event in events:
        take(states, event.session, event.body, event.turn)
    return states


def take(states: States, session: str, body: e.AnyBody, turn: int | None = None) -> None:
    """Apply one event. Raises IllegalMove."""
    if isinstance(body, _TASK):
        states.tasks[session] = step(NEXT_TASK, states.tasks.get(session), body, session)
    if isinstance(body, _SESSION):
        states.phases[session] = step(NEXT_PHASE, states.phases.get(session), body, session)
    moved = e.SessionCreated | e.SessionPreparing | e.SessionRunning | e.SessionRewound | e.SessionStopped
    if isinstance(body, moved):
        states.reasons[session] = body.reason if isinstance(body, e.SessionStopped) else ""
    if isinstance(body, e.PortEvent):
        states.ports.pop(body.host_port, None)
    if isinstance(body, e.PortOpened):
        states.ports[body.host_port] = (session, body.guest_port)
    if isinstance(body, e.SnapshotTaken):
        states.snapshots[body.snapshot] = (session, body.name)
    if isinstance(body, e.SnapshotRemoved):
        states.snapshots.pop(body.snapshot, None)
    if isinstance(body, e.SessionCreated):
        states.activities[session] = Activity.IDLE
        states.spent[session] = Usage(cost_usd=0.0)
    if isinstance(body, e.MachineEvent):
        states.machines[body.machine] = step(NEXT_MACHINE, states.machines.get(body.machine), body, body.machine)
    if isinstance(body, e.TurnCreated | e.TurnStarted | e.TurnEnded):
        assert turn is not None
        states.turns[session, turn] = step(NEXT_TURN, states.turns.get((session, turn)), body, session)
    if isinstance(body, e.ModelCalled) and session in states.spent:
        states.spent[session] += body.usage
    if session in states.activities:
        states.activities[session] = ACTIVITY.get(type(body), states.activities[session])
        in_turn = any(of == session and state is TurnState.RUNNING for (of, _), state in states.turns.items())
        if isinstance(body, e.SessionUnpaused) and in_turn:
            states.activities[session] = Activity.THINKING


def stored(conn: Connection) -> States:
    """Read the same states from the rows."""
    sessions = views.sessions(conn)
    return States(
        tasks={row.id: row.state for row in views.tasks(conn)},
        phases={row.id: row.phase for row in sessions},
        activities={row.id: row.activity for row in sessions},
        machines={row.name: row.status for row in views.machines(conn, live_only=False)},
        turns={(row.session, row.number): row.state for one in sessions for row in views.turns(conn, one.id)},
        spent={row.id: row.spent for row in sessions},
        reasons={row.id: row.reason for row in sessions},
        ports={row.host_port: (row.session, row.guest_port) for row in views.ports(conn)},
        snapshots={row.id: (row.session, row.name) for row in views.snapshots(conn)},
    )
