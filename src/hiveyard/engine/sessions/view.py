"""Views of sessions for people and programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import NotFound
from hiveyard.core.events import Failure
from hiveyard.core.states import AT_WORK, Activity, Phase, TaskState
from hiveyard.core.usage import Usage
from hiveyard.engine.sessions.session_agent import mode_of
from hiveyard.store import views
from hiveyard.store.views import LastEvent, PortRow, SessionRow

SSH = 22
RESUMABLE = (*AT_WORK, Phase.STOPPED)
"""The phases of sessions that run or can be resumed."""


class OpenPort(msgspec.Struct, frozen=True, kw_only=True):
    """A forwarded port: `host` on the host's loopback leads to `guest` in the machine."""

    host: int
    guest: int


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A session. `status` is its phase, or `paused`; `activity` is valid while it is running; `reason` is why it
    stopped; `task` is the state of its task, if a task made it; `waits_for` is its position in the line and what it
    waits for; `mode` is how its agent is held, `terminal`, `live` or `one-shot`; `port` is the host port for ssh.
    `turns` counts turns that started. Times are seconds since the epoch; `last_event_at` is the time of the last event,
    `last_seq` its number in the journal."""

    id: str
    name: str
    status: str
    activity: str
    reason: str
    repo: str
    branch: str | None
    base: str | None
    agent: str
    mode: str
    model: str | None
    provider: str | None
    tier: str | None
    task: TaskState | None
    waits_for: str = ""
    parent: str | None
    port: int | None
    ports: list[OpenPort]
    turns: int
    queued: int
    usage: Usage
    budget_usd: float | None
    error: Failure | None
    created_at: float
    last_event_at: float
    last_seq: int


def view(conn: Connection, id: str, waiting: Mapping[str, str]) -> SessionView:
    """Return the view of one session, or of the session of a task. Raises NotFound."""
    return _views(conn, [views.session(conn, id)], waiting)[0]


def require_session(row: SessionRow) -> SessionRow:
    """Return `row` if it is a session of its own. Raises NotFound for the session of a task."""
    if not row.own:
        raise NotFound(
            f"{row.slug} is a task, not a session",
            hint=f"hv resume {row.slug} continues its conversation when it is over",
        )
    return row


def session_views(
    conn: Connection,
    waiting: Mapping[str, str],
    *,
    over: bool,
    tasks: bool = False,
    ids: Collection[str] | None = None,
    limit: int | None = None,
) -> list[SessionView]:
    """Return sessions, newest first; `over` includes those that cannot be resumed, `tasks` those of tasks. `ids`
    selects some of them."""
    rows = views.sessions(conn, phases=None if over else RESUMABLE, own=not tasks, ids=ids, limit=limit)
    return _views(conn, [row for row in rows if ids is None or row.id in ids], waiting)


def _views(conn: Connection, rows: Sequence[SessionRow], waiting: Mapping[str, str]) -> list[SessionView]:
    ids = [row.id for row in rows]
    turns, last, ports = _turns(conn, ids), views.last_events(conn, ids), _ports(views.ports(conn))
    tasks = {task.id: task.state for task in views.tasks(conn, ids=ids)}

    def parts(id: str) -> _Parts:
        return _Parts(tasks.get(id), waiting.get(id, ""), turns[id], ports.get(id, []), last[id])

    return [_view(row, parts(row.id)) for row in rows]


class _Turns(NamedTuple):
    started: int
    queued: int


class _Parts(NamedTuple):
    task: TaskState | None
    waits_for: str
    turns: _Turns
    ports: list[OpenPort]
    last: LastEvent


def _turns(conn: Connection, ids: Sequence[str]) -> dict[str, _Turns]:
    started, queued = views.turns_started(conn, ids), views.turns_queued(conn, ids)
    return {id: _Turns(started.get(id, 0), queued.get(id, 0)) for id in ids}


def _ports(rows: Sequence[PortRow]) -> Mapping[str, list[OpenPort]]:
    found: dict[str, list[OpenPort]] = {}
    for row in rows:
        found.setdefault(row.session, []).append(OpenPort(host=row.host_port, guest=row.guest_port))
    return found


def _view(row: SessionRow, parts: _Parts) -> SessionView:
    request = row.request
    paused = row.phase is Phase.RUNNING and row.activity is Activity.PAUSED
    return SessionView(
        id=row.id,
        name=row.slug,
        status="paused" if paused else row.phase.value,
        activity=row.activity.value,
        reason=row.reason,
        repo=row.repo,
        branch=row.branch,
        base=row.base,
        agent=row.agent,
        mode=mode_of(row),
        model=request.get("model"),
        provider=row.provider,
        tier=row.tier,
        task=parts.task,
        waits_for=parts.waits_for,
        parent=row.parent,
        port=next((port.host for port in parts.ports if port.guest == SSH), None),
        ports=parts.ports,
        turns=parts.turns.started,
        queued=parts.turns.queued,
        usage=row.spent,
        budget_usd=request.get("budget_usd"),
        error=row.failure,
        created_at=row.created_at,
        last_event_at=parts.last.at,
        last_seq=parts.last.seq,
    )
