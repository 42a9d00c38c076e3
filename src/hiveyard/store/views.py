"""Read rows as frozen dataclasses. Nothing here writes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Table, func, select, true

from hiveyard.core.errors import Ambiguous, NotFound
from hiveyard.core.events import AskOption, Failure
from hiveyard.core.machines import MachineStatus
from hiveyard.core.states import Activity, AskState, Phase, TaskState, TurnState
from hiveyard.core.usage import Usage
from hiveyard.store import schema
from hiveyard.store.names import unknown

AnyRow = Row[Any]
_MAX_IDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task. Its id is also its session's id. Times are in seconds since the epoch. `provider`, `tier` and `machine`
    are None until it is assigned. `cancel_asked_at` is the time of the first request to cancel it."""

    id: str
    slug: str
    state: TaskState
    request: dict[str, Any]
    provider: str | None
    tier: str | None
    machine: str | None
    failure: Failure | None
    created_at: float
    started_at: float | None
    cancel_asked_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session. `machine` is its last machine; the table `machines` says whether it still exists. `spent` is the total
    usage of its door, with known prices only. `activity` is valid while `phase` is running. `own` is false for the
    session of a task that did not go on after the task's end. `reason` is why it stopped. `feed_offset` is how many
    bytes of its feed are in the journal."""

    id: str
    slug: str
    repo: str
    agent: str
    phase: Phase
    activity: Activity
    branch: str | None
    base: str | None
    machine: str | None
    provider: str | None
    tier: str | None
    failure: Failure | None
    request: dict[str, Any]
    own: bool
    parent: str | None
    reason: str
    feed_offset: int
    created_at: float
    updated_at: float
    spent: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRow:
    """A machine as recorded in the journal; its backend may differ. `reason` is why it is in error."""

    name: str
    session: str
    provider: str
    status: MachineStatus
    reason: str
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRow:
    """One run of the agent. The offsets are how many bytes of its output are in the journal."""

    session: str
    number: int
    state: TurnState
    agent: str
    program: str
    model: str
    pid: int | None
    output_offset: int
    stderr_offset: int
    outcome: str | None
    exit_code: int | None
    failure: Failure | None
    conversation: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """The collected result of a session: commits on `branch` up to `head`, and counts against `base`."""

    session: str
    branch: str
    base: str
    head: str
    commits: int
    files: int
    insertions: int
    deletions: int
    leftover: bool
    collected_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRow:
    """A host port that is forwarded into a session's guest. Guest port 22 is ssh."""

    host_port: int
    session: str
    guest_port: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """A snapshot of a session. A `live` one has memory and processes. `feed_offset` is how many bytes of the feed had
    been read when it was taken."""

    id: str
    session: str
    name: str
    live: bool
    seconds: float
    size: int
    after_turn: int
    feed_offset: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AskRow:
    """A question. `request` is the program's own id of it, "" if the hive keeps it. Then `asker` put it to `target`.
    `answer` is set once it is answered."""

    id: str
    session: str
    turn: int | None
    kind: str
    state: AskState
    request: str
    message: str
    tool: str
    input: str
    options: tuple[AskOption, ...]
    answer: dict[str, Any] | None
    asked_at: float
    ended_at: float | None
    asker: str
    target: str
    multi: bool
    expires_at: float | None
    answered_by: str


def task(conn: Connection, id: str) -> TaskRow:
    """Return a task. Raises NotFound."""
    if (found := find_task(conn, id)) is not None:
        return found
    if (session := find_session(conn, id)) is not None:
        name = session.slug
        raise NotFound(f"{name} is a session, not a task", hint=f"hv show {name}; hv stop {name}")
    raise unknown(id)


def find_task(conn: Connection, id: str) -> TaskRow | None:
    row = _by_key(conn, schema.tasks, id)
    return None if row is None else _task(row)


def tasks(
    conn: Connection,
    *,
    states: Collection[TaskState] | None = None,
    ids: Collection[str] | None = None,
    limit: int | None = None,
) -> list[TaskRow]:
    """Return tasks, newest first."""
    columns = schema.tasks.c
    query = select(schema.tasks).order_by(columns.created_at.desc(), columns.id).limit(limit)
    if states is not None:
        query = query.where(columns.state.in_(states))
    if ids is not None:
        query = query.where(_among(columns.id, ids))
    return [_task(row) for row in conn.execute(query)]


def session(conn: Connection, id: str) -> SessionRow:
    """Return a session. Raises NotFound."""
    if (found := find_session(conn, id)) is None:
        raise unknown(id)
    return found


def find_session(conn: Connection, id: str) -> SessionRow | None:
    row = _by_key(conn, schema.sessions, id)
    return None if row is None else _session(row)


def sessions(
    conn: Connection,
    *,
    phases: Collection[Phase] | None = None,
    ids: Collection[str] | None = None,
    own: bool = False,
    limit: int | None = None,
) -> list[SessionRow]:
    """Return sessions, newest first; with `own` only those that no task made, or that went on after their task."""
    columns = schema.sessions.c
    query = select(schema.sessions).order_by(columns.created_at.desc(), columns.id).limit(limit)
    if phases is not None:
        query = query.where(columns.phase.in_(phases))
    if ids is not None:
        query = query.where(_among(columns.id, ids))
    if own:
        query = query.where(columns.own)
    return [_session(row) for row in conn.execute(query)]


def branches(conn: Connection) -> set[str]:
    """Return the branches that tasks and sessions work on or worked on."""
    column = schema.sessions.c.branch
    return {str(row[0]) for row in conn.execute(select(column).where(column.is_not(None)))}


def ports(conn: Connection, session: str | None = None) -> list[PortRow]:
    """Return the ports of a session, or all, sorted by host port."""
    query = select(schema.ports).order_by(schema.ports.c.host_port)
    if session is not None:
        query = query.where(schema.ports.c.session == session)
    return [PortRow(**row._mapping) for row in conn.execute(query)]


def snapshots(conn: Connection, session: str | None = None) -> list[SnapshotRow]:
    """Return the snapshots of a session, or all, oldest first."""
    query = select(schema.snapshots).order_by(schema.snapshots.c.created_at, schema.snapshots.c.id)
    if session is not None:
        query = query.where(schema.snapshots.c.session == session)
    return [SnapshotRow(**row._mapping) for row in conn.execute(query)]


def turns(conn: Connection, session: str) -> list[TurnRow]:
    """Return the turns of a session, sorted by number."""
    columns = schema.turns.c
    query = select(schema.turns).where(columns.session == session).order_by(columns.number)
    return [_turn(row) for row in conn.execute(query)]


def turns_of(conn: Connection, sessions: Collection[str]) -> list[TurnRow]:
    """Return the turns of several sessions, sorted by session and number."""
    columns = schema.turns.c
    query = select(schema.turns).where(_among(columns.session, sessions)).order_by(columns.session, columns.number)
    return [_turn(row) for row in conn.execute(query)]


def turns_started(conn: Connection, sessions: Collection[str]) -> dict[str, int]:
    """Return how many turns of each session have started. Sessions without one are left out."""
    columns = schema.turns.c
    query = select(columns.session, func.count()).where(
        _among(columns.session, sessions), columns.started_at.is_not(None)
    )
    return {row[0]: row[1] for row in conn.execute(query.group_by(columns.session))}


def turns_queued(conn: Connection, sessions: Collection[str]) -> dict[str, int]:
    """Return how many turns of each session wait to be started. Sessions without one are left out."""
    columns = schema.turns.c
    query = select(columns.session, func.count()).where(
        _among(columns.session, sessions), columns.state == TurnState.PENDING
    )
    return {row[0]: row[1] for row in conn.execute(query.group_by(columns.session))}


class LastEvent(NamedTuple):
    """The last event of a session: its number and its time."""

    seq: int
    at: float


def last_events(conn: Connection, sessions: Collection[str]) -> dict[str, LastEvent]:
    """Return the last event of each session."""
    events, keys = schema.events.c, schema.sessions.c.id
    theirs = schema.events.alias().c
    newest = select(func.max(theirs.seq)).where(theirs.session == keys).correlate(schema.sessions).scalar_subquery()
    query = select(keys, events.seq, events.at).join_from(schema.sessions, schema.events, events.seq == newest)
    return {row[0]: LastEvent(row[1], row[2]) for row in conn.execute(query.where(_among(keys, sessions)))}


def turn(conn: Connection, session: str, number: int) -> TurnRow:
    """Return a turn. Raises NotFound."""
    columns = schema.turns.c
    row = conn.execute(select(schema.turns).where(columns.session == session, columns.number == number)).first()
    if row is None:
        raise NotFound(f"session {session} has no turn {number}", hint=f"hv show {session}")
    return _turn(row)


def machines(conn: Connection, *, live_only: bool = True, session: str | None = None) -> list[MachineRow]:
    """Return machines, oldest first. All but `stopped` are live: one in error may still exist in its backend."""
    columns = schema.machines.c
    query = select(schema.machines).order_by(columns.created_at, columns.name)
    if live_only:
        query = query.where(columns.status != MachineStatus.STOPPED)
    if session is not None:
        query = query.where(columns.session == session)
    return [_machine(row) for row in conn.execute(query)]


def find_machine(conn: Connection, name: str) -> MachineRow | None:
    row = conn.execute(select(schema.machines).where(schema.machines.c.name == name)).first()
    return None if row is None else _machine(row)


def asks(conn: Connection, *, open_only: bool = True, limit: int | None = None) -> list[AskRow]:
    """Return questions to the user: the open ones, oldest first, or all of them, newest first."""
    columns = schema.asks.c
    if open_only:
        query = select(schema.asks).where(columns.state == AskState.OPEN).order_by(columns.asked_at, columns.id)
    else:
        query = select(schema.asks).order_by(columns.asked_at.desc(), columns.id)
    return [as_ask(row) for row in conn.execute(query.limit(limit))]


def ask(conn: Connection, ref: str) -> AskRow:
    """Return the question with this id or the only one whose id begins like this. Raises NotFound, Ambiguous."""
    rows = conn.execute(select(schema.asks).where(schema.asks.c.id.startswith(ref, autoescape=True)).limit(2)).all()
    exact = [row for row in rows if row.id == ref] or rows
    if not ref or not exact:
        raise NotFound(f"there is no question {ref[:80]!r}", hint="hv inbox")
    if len(exact) > 1:
        raise Ambiguous(f"several questions begin with {ref[:80]!r}", hint="hv inbox")
    return as_ask(exact[0])


def result(conn: Connection, session: str) -> ResultRow | None:
    """Return the result of a session; None until something was collected."""
    row = conn.execute(select(schema.results).where(schema.results.c.session == session)).first()
    return None if row is None else ResultRow(**row._mapping)


def results(conn: Connection, sessions: Collection[str]) -> list[ResultRow]:
    """Return the results of the sessions that have one."""
    query = select(schema.results).where(_among(schema.results.c.session, sessions))
    return [ResultRow(**row._mapping) for row in conn.execute(query)]


def _among(column: ColumnElement[str], ids: Collection[str]) -> ColumnElement[bool]:
    """Match the ids, or every row if there are more ids than a statement may have parameters: the caller selects."""
    return column.in_(ids) if len(ids) <= _MAX_IDS else true()


def _by_key(conn: Connection, table: Table, key: str) -> AnyRow | None:
    return conn.execute(select(table).where(table.c.id == key)).first()


def _task(row: AnyRow) -> TaskRow:
    values = dict(row._mapping)
    values["state"] = TaskState(row.state)
    values["request"] = msgspec.json.decode(row.request)
    values["failure"] = _failure(row.failure)
    return TaskRow(**values)


def _session(row: AnyRow) -> SessionRow:
    values = dict(row._mapping)
    values["phase"] = Phase(row.phase)
    values["activity"] = Activity(row.activity)
    values["failure"] = _failure(row.failure)
    values["request"] = msgspec.json.decode(row.request or "{}")
    values["spent"] = Usage(**{name: values.pop(name) for name in Usage.__struct_fields__})
    return SessionRow(**values)


def _machine(row: AnyRow) -> MachineRow:
    return MachineRow(**dict(row._mapping) | {"status": MachineStatus(row.status)})


def _turn(row: AnyRow) -> TurnRow:
    return TurnRow(**dict(row._mapping) | {"state": TurnState(row.state), "failure": _failure(row.failure)})


def as_ask(row: AnyRow) -> AskRow:
    """Return a question. One of a newer version is listed too, without the options that this version cannot read."""
    values = dict(row._mapping) | {"state": AskState(row.state), "options": ()}
    with suppress(msgspec.MsgspecError):
        values["options"] = msgspec.json.decode(row.options, type=tuple[AskOption, ...])
    values["answer"] = None if row.answer is None else msgspec.json.decode(row.answer)
    return AskRow(**values)


def _failure(text: str | None) -> Failure | None:
    return None if text is None else msgspec.json.decode(text, type=Failure)
