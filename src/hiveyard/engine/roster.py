"""Sessions as people and programs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import Connection

from hiveyard.core.events import Failure
from hiveyard.core.states import AT_WORK, Activity, Phase
from hiveyard.core.usage import Usage
from hiveyard.store import views
from hiveyard.store.views import PortRow, SessionRow, TurnRow

SSH = 22


class OpenPort(msgspec.Struct, frozen=True, kw_only=True):
    """`host` on the host's loopback leads to `guest` in the machine."""

    host: int
    guest: int


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A session. `status` is its phase, or `paused`; `activity` means something while it is running; `reason` is why
    it stopped; `port` is where its ssh is reached. `turns` counts those that began. Times are seconds since the
    epoch."""

    id: str
    name: str
    status: str
    activity: str
    reason: str
    repo: str
    branch: str | None
    base: str | None
    agent: str
    model: str | None
    provider: str | None
    tier: str | None
    parent: str | None
    port: int | None
    ports: list[OpenPort]
    turns: int
    usage: Usage
    budget_usd: float | None
    error: Failure | None
    created_at: float
    updated_at: float


def view(conn: Connection, id: str) -> SessionView:
    """One session. Raises NotFound."""
    return _views(conn, [views.session(conn, id)])[0]


def views_of(conn: Connection, *, live_only: bool) -> list[SessionView]:
    """Those that no task made, newest first; `live_only` leaves out what is stopped or over."""
    phases = AT_WORK if live_only else None
    return _views(conn, [row for row in views.sessions(conn, phases=phases) if row.request is not None])


def _views(conn: Connection, rows: Sequence[SessionRow]) -> list[SessionView]:
    turns = _by_session(views.turns_of(conn, [row.id for row in rows]))
    ports = _ports(views.ports(conn))
    return [_view(row, turns.get(row.id, []), ports.get(row.id, [])) for row in rows]


def _by_session(rows: Sequence[TurnRow]) -> Mapping[str, list[TurnRow]]:
    found: dict[str, list[TurnRow]] = {}
    for row in rows:
        found.setdefault(row.session, []).append(row)
    return found


def _ports(rows: Sequence[PortRow]) -> Mapping[str, list[OpenPort]]:
    found: dict[str, list[OpenPort]] = {}
    for row in rows:
        found.setdefault(row.session, []).append(OpenPort(host=row.host_port, guest=row.guest_port))
    return found


def _view(row: SessionRow, turns: Sequence[TurnRow], ports: list[OpenPort]) -> SessionView:
    request = row.request or {}
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
        model=request.get("model"),
        provider=row.provider,
        tier=row.tier,
        parent=row.parent,
        port=next((port.host for port in ports if port.guest == SSH), None),
        ports=ports,
        turns=sum(turn.started_at is not None for turn in turns),
        usage=row.spent,
        budget_usd=request.get("budget_usd"),
        error=row.failure,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
