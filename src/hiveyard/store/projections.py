"""Update the rows that follow from events.

Each function checks the transition before it writes, so that an illegal one changes nothing. The rows can be rebuilt
from the events alone; a test does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove
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
from hiveyard.kit.text import without_nul
from hiveyard.store import ask_projections as asks
from hiveyard.store import hive_projections as hive
from hiveyard.store.names import unknown
from hiveyard.store.prepared import Prepared
from hiveyard.store.schema import machines, ports, results, sessions, snapshots, tasks, turns

Values = dict[str, Any]


def apply(conn: Connection, session: str, body: e.AnyBody, *, at: float, turn: int | None) -> None:
    """Update the rows that an event concerns. Raises IllegalMove; NotFound for an unknown session."""
    move = _MOVES.get(type(body))
    if move is not None:
        move(conn, session, body, at, turn)
    if move is None or type(body) in ACTIVITY:
        _update_activity(conn, session, body, at)


# --- tasks ----------------------------------------------------------------------------------------------------------

_TASK_STATE = select(tasks.c.state).where(tasks.c.id == bindparam("key"))


def _task(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    row = conn.execute(_TASK_STATE, {"key": session}).first()
    state = step(NEXT_TASK, None if row is None else TaskState(row.state), body, f"task {session}")
    if isinstance(body, e.TaskCreated):
        request = msgspec.json.encode(body.request).decode()
        conn.execute(
            insert(tasks), {"id": session, "slug": body.slug, "state": state, "request": request, "created_at": at}
        )
        return
    values: Values = {"state": state}
    if isinstance(body, e.TaskAssigned):
        place = {"provider": body.provider, "tier": body.tier, "machine": body.machine}
        values |= place
        _update_session(conn, session, {**place, "updated_at": at})
    if isinstance(body, e.TaskStarted):
        values["started_at"] = at
    if isinstance(body, e.TaskFailed):
        values["failure"] = _json(body.failure)
    if state.over:
        values["ended_at"] = at
    conn.execute(update(tasks).where(tasks.c.id == session).values(values))


def _cancel_asked(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    asked = func.coalesce(tasks.c.cancel_asked_at, at)
    if not conn.execute(update(tasks).where(tasks.c.id == session).values(cancel_asked_at=asked)).rowcount:
        raise unknown(session)


# --- sessions -------------------------------------------------------------------------------------------------------

_ACTIVITY = Prepared(select(sessions.c.activity).where(sessions.c.id == bindparam("key")))
_PHASE = select(sessions.c.phase).where(sessions.c.id == bindparam("key"))
_OF_TURN = ("prompt", "timeout", "keep")
_ZERO_USAGE: Values = dict.fromkeys(
    ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_usd", "requests"), 0
)


def _session(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    row = conn.execute(_PHASE, {"key": session}).first()
    phase = step(NEXT_PHASE, None if row is None else Phase(row.phase), body, f"session {session}")
    if isinstance(body, e.SessionCreated):
        _create_session(conn, session, body, phase, at)
        return
    values: Values = {"phase": phase, "updated_at": at}
    if phase is not Phase.RUNNING:
        asks.expire_permissions(conn, session, at)
    if isinstance(body, e.SessionFailed):
        values["failure"] = _json(body.failure)
    if isinstance(body, e.SessionStopped | e.SessionPreparing | e.SessionRunning | e.SessionRewound):
        values["reason"] = without_nul(body.reason) if isinstance(body, e.SessionStopped) else ""
    if isinstance(body, e.SessionPreparing):
        values["failure"] = None
    _update_session(conn, session, values)


def _create_session(conn: Connection, session: str, body: e.SessionCreated, phase: Phase, at: float) -> None:
    place = conn.execute(select(tasks.c.provider, tasks.c.tier, tasks.c.machine).where(tasks.c.id == session)).first()
    values: Values = {} if place is None else dict(place._mapping)
    values |= {"id": session, "slug": body.slug, "repo": body.repo, "agent": body.agent}
    values |= {"phase": phase, "activity": "idle", "created_at": at, "updated_at": at, "parent": body.parent}
    request = body.request if place is None else _request_of_task(conn, session, body.agent)
    if request is not None:
        values["request"] = msgspec.json.encode(request).decode()
    conn.execute(insert(sessions), {**values, "own": place is None} | _ZERO_USAGE)


def _request_of_task(conn: Connection, task: str, agent: str) -> Values:
    """Return the request of a task's session: that of the task, without what is only about its one turn."""
    stored = msgspec.json.decode(conn.execute(select(tasks.c.request).where(tasks.c.id == task)).scalar_one())
    return {key: value for key, value in stored.items() if key not in _OF_TURN} | {"agent": agent}


def _opened(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SessionOpened)
    values: Values = {"own": True, "updated_at": at}
    if body.request is not None:  # in a journal of an older Hiveyard
        values["request"] = msgspec.json.encode(body.request).decode()
    if not _update_session(conn, session, values):
        raise unknown(session)


def _prepared(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SessionPrepared)
    if not _update_session(conn, session, {"base": body.base, "branch": body.branch, "updated_at": at}):
        raise unknown(session)


def _placed(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SessionPlaced)
    if not _update_session(conn, session, {"provider": body.provider, "tier": body.tier, "updated_at": at}):
        raise unknown(session)


def _rewound(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Reset the feed's offset to the snapshot's: what comes after it in the feed is new."""
    assert isinstance(body, e.SessionRewound)
    _session(conn, session, body, at, turn)
    feed = select(snapshots.c.feed_offset).where(snapshots.c.id == body.snapshot).scalar_subquery()
    _update_session(conn, session, {"feed_offset": func.coalesce(feed, 0)})


def _started_elsewhere(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SessionForked | e.SessionImported)
    if not _update_session(conn, session, {"feed_offset": body.feed_offset, "updated_at": at}):
        raise unknown(session)


def _budget_shared(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Lower the session's budget. Its own creation event keeps the requested one."""
    assert isinstance(body, e.BudgetShared)
    request = _request(conn, session)
    if request.get("budget_usd") is not None:
        _set_request(conn, session, request | {"budget_usd": request["budget_usd"] - body.dollars}, at)


def _budget_set(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.BudgetSet)
    if not _set_request(conn, session, _request(conn, session) | {"budget_usd": body.dollars}, at):
        raise unknown(session)


def _changed(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SessionChanged)
    if not _set_request(conn, session, _request(conn, session) | body.fields, at):
        raise unknown(session)


def _request(conn: Connection, session: str) -> Values:
    """Return the session's request in its current form."""
    stored = conn.execute(select(sessions.c.request).where(sessions.c.id == session)).scalar()
    request: Values = msgspec.json.decode(stored) if stored else {}
    return request


def _set_request(conn: Connection, session: str, request: Values, at: float) -> int:
    return _update_session(conn, session, {"request": msgspec.json.encode(request).decode(), "updated_at": at})


_SPEND = (
    update(sessions)
    .where(sessions.c.id == bindparam("key"))
    .values(
        {name: sessions.c[name] + bindparam(f"more_{name}", type_=sessions.c[name].type) for name in _ZERO_USAGE}
        | {"updated_at": bindparam("at")}
    )
)


def _add_usage(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Add up usage. One ModelCalled counts as one request; an unknown price adds nothing."""
    assert isinstance(body, e.ModelCalled)
    used = {f"more_{name}": getattr(body.usage, name) or 0 for name in _ZERO_USAGE} | {"more_requests": 1}
    if not conn.execute(_SPEND, {"key": session, "at": at, **used}).rowcount:
        _check_known(conn, session)


_SET_ACTIVITY = (
    update(sessions)
    .where(sessions.c.id == bindparam("key"))
    .values(activity=bindparam("new_activity"), updated_at=bindparam("at"))
)


_IN_TURN = select(turns.c.number).where(turns.c.session == bindparam("key"), turns.c.state == TurnState.RUNNING)


def _update_activity(conn: Connection, session: str, body: e.Body, at: float) -> None:
    """Set the session's activity. Refuse an event of an unknown session."""
    row = _ACTIVITY.first(conn, {"key": session})
    if row is None:
        _check_known(conn, session)
        return
    activity = ACTIVITY.get(type(body))
    if isinstance(body, e.AskAnswered) and not body.request:
        activity = None  # no program waits for it: it goes to a mailbox
    if isinstance(body, e.SessionUnpaused) and conn.execute(_IN_TURN, {"key": session}).first():
        activity = Activity.THINKING
    if activity is not None and row[0] != activity:
        conn.execute(_SET_ACTIVITY, {"key": session, "new_activity": activity, "at": at})


# --- machines -------------------------------------------------------------------------------------------------------


def _machine(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.MachineEvent)
    here = machines.c.name == body.machine
    row = conn.execute(select(machines.c.status).where(here)).first()
    status = step(NEXT_MACHINE, None if row is None else MachineStatus(row.status), body, f"machine {body.machine}")
    values: Values = {"status": status, "updated_at": at}
    if isinstance(body, e.MachineFailed):
        values["reason"] = without_nul(f"{body.failure.code}: {body.failure.message}")
    if isinstance(body, e.MachineBooting):
        _check_known(conn, session)
        values |= {"session": session, "provider": body.provider, "reason": "", "created_at": at}
        _update_session(conn, session, {"machine": body.machine, "provider": body.provider, "updated_at": at})
    if row is None:
        conn.execute(insert(machines), {"name": body.machine, **values})
    else:
        conn.execute(update(machines).where(here).values(values))


# --- ports and snapshots --------------------------------------------------------------------------------------------


def _port(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Set the target of a host port. A port has one target; opening it again replaces the target."""
    assert isinstance(body, e.PortEvent)
    _check_known(conn, session)
    conn.execute(delete(ports).where(ports.c.host_port == body.host_port))
    if isinstance(body, e.PortOpened):
        values = {"host_port": body.host_port, "session": session, "guest_port": body.guest_port, "created_at": at}
        conn.execute(insert(ports), values)


def _snapshot(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.SnapshotEvent)
    _check_known(conn, session)
    conn.execute(delete(snapshots).where(snapshots.c.id == body.snapshot))
    if isinstance(body, e.SnapshotTaken):
        feed = body.feed_offset
        if feed is None:
            feed = conn.execute(select(sessions.c.feed_offset).where(sessions.c.id == session)).scalar() or 0
        values: Values = {"id": body.snapshot, "session": session, "name": body.name, "live": body.live}
        values |= {"seconds": body.seconds, "size": body.size, "after_turn": body.after_turn}
        conn.execute(insert(snapshots), values | {"feed_offset": feed, "created_at": at})


# --- live processes -------------------------------------------------------------------------------------------------


def _live_started(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Read the output of a new process from its first byte."""
    if not _update_session(conn, session, {"feed_offset": 0, "updated_at": at}):
        raise unknown(session)
    asks.expire_permissions(conn, session, at)


def _model_chosen(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.ModelChosen)
    if not _set_request(conn, session, _request(conn, session) | {"model": body.model}, at):
        raise unknown(session)


# --- turns and their results ----------------------------------------------------------------------------------------


def _turn(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    if turn is None:
        raise IllegalMove(f"session {session}: {body.type} has no turn number")
    _check_known(conn, session)
    here = (turns.c.session == session) & (turns.c.number == turn)
    row = conn.execute(select(turns.c.state).where(here)).first()
    state = step(NEXT_TURN, None if row is None else TurnState(row.state), body, f"turn {turn} of session {session}")
    values: Values = {"state": state}
    if isinstance(body, e.TurnCreated):
        values |= {"agent": body.agent, "model": body.model}
    elif isinstance(body, e.TurnStarted):
        values |= {"agent": body.agent, "program": body.program, "pid": body.pid, "started_at": at}
        values |= {"model": body.model} if body.model or row is None else {}
    elif isinstance(body, e.TurnEnded):
        asks.expire_permissions(conn, session, at)
        values |= {"outcome": body.outcome, "exit_code": body.exit_code, "ended_at": at}
        values |= {"failure": _json(body.failure)} if body.failure else {}
        values |= {"conversation": without_nul(body.conversation)} if body.conversation else {}
    if row is None:
        fresh: Values = {"program": "", "output_offset": 0, "stderr_offset": 0, "created_at": at}
        conn.execute(insert(turns), {"session": session, "number": turn, **fresh, **values})
    else:
        conn.execute(update(turns).where(here).values(values))


def _agent_started(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    """Store the agent's own name for its conversation at once: after a crash there may be no other source."""
    assert isinstance(body, e.AgentStarted)
    values = {"conversation": without_nul(body.conversation), "model": without_nul(body.model)}
    if turn is not None and (known := {name: value for name, value in values.items() if value}):
        conn.execute(update(turns).where(turns.c.session == session, turns.c.number == turn).values(known))


def _result(conn: Connection, session: str, body: e.Body, at: float, turn: int | None) -> None:
    assert isinstance(body, e.ResultCollected)
    _check_known(conn, session)
    values: Values = {name: getattr(body, name) for name in body.__struct_fields__} | {"collected_at": at}
    if not conn.execute(update(results).where(results.c.session == session).values(values)).rowcount:
        conn.execute(insert(results), {"session": session, **values})


# --- shared by all --------------------------------------------------------------------------------------------------


def _update_session(conn: Connection, session: str, values: Values) -> int:
    return conn.execute(update(sessions).where(sessions.c.id == session).values(values)).rowcount


def _check_known(conn: Connection, session: str) -> None:
    """Raise NotFound for a session that does not exist or was removed: nothing would ever remove its events."""
    if session and not any(_exists(conn, table, session) for table in (tasks, sessions)):
        raise unknown(session)


def _exists(conn: Connection, table: Table, key: str) -> bool:
    return conn.execute(select(table.c.id).where(table.c.id == key)).first() is not None


def _json(failure: e.Failure) -> str:
    return msgspec.json.encode(failure).decode()


Move = Callable[[Connection, str, e.Body, float, "int | None"], None]
_MOVES: Mapping[type[e.Body], Move] = {
    **dict.fromkeys((e.TaskCreated, e.TaskAssigned, e.TaskStarted), _task),
    **dict.fromkeys((e.TaskCompleted, e.TaskFailed, e.TaskCancelled), _task),
    e.TaskCancelAsked: _cancel_asked,
    **dict.fromkeys((e.SessionCreated, e.SessionPreparing, e.SessionRunning), _session),
    **dict.fromkeys((e.SessionStopped, e.SessionFinished, e.SessionFailed), _session),
    e.SessionOpened: _opened,
    e.SessionPrepared: _prepared,
    e.SessionPlaced: _placed,
    e.SessionRewound: _rewound,
    e.SessionForked: _started_elsewhere,
    e.SessionImported: _started_elsewhere,
    e.BudgetShared: _budget_shared,
    e.BudgetSet: _budget_set,
    e.SessionChanged: _changed,
    **dict.fromkeys((e.PortOpened, e.PortClosed), _port),
    **dict.fromkeys((e.SnapshotTaken, e.SnapshotRemoved), _snapshot),
    **dict.fromkeys((e.MachineBooting, e.MachineReady, e.MachineStopping, e.MachineStopped, e.MachineFailed), _machine),
    **dict.fromkeys((e.TurnCreated, e.TurnStarted, e.TurnEnded), _turn),
    e.AgentStarted: _agent_started,
    e.LiveStarted: _live_started,
    e.ModelChosen: _model_chosen,
    e.ResultCollected: _result,
    e.ModelCalled: _add_usage,
    **asks.MOVES,
    **hive.MOVES,
}
