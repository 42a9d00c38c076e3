"""Change the request of a session that exists: its budget, model, image, system text, tools and variables."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput
from hiveyard.core.events import SessionChanged
from hiveyard.core.tools import ToolServer
from hiveyard.engine.run_spec import Dollars
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.engine.workspace.values import keep_values, with_values
from hiveyard.kit.secret import Secret
from hiveyard.store import journal, views


class SessionChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a session's request; null fields stay as they are. `budget_usd` is the new total budget. `mcp` and
    `env` are added, and replace those of the same names. An empty `system` removes the text."""

    budget_usd: Dollars | None = None
    model: str | None = None
    image: str | None = None
    system: str | None = None
    mcp: dict[str, ToolServer] | None = None
    env: dict[str, Secret] | None = None

    def applied(self, request: SpawnRequest) -> SpawnRequest:
        """Return a request with these changes. Raises BadInput."""
        fields = {name: getattr(self, name) for name in self._names}
        for added in ("mcp", "env"):
            if added in fields:
                fields[added] = {**(getattr(request, added) or {}), **fields[added]}
        return msgspec.structs.replace(request, **fields)

    def event(self, changed: SpawnRequest) -> SessionChanged | None:
        """Return the event that describes these changes, which led to the request `changed`; None without changes."""
        now = changed.as_json()
        fields: dict[str, Any] = {name: now.get(name) for name in self._names}
        return SessionChanged(**fields) if fields else None

    @property
    def only_budget(self) -> bool:
        """Whether nothing but the budget changes."""
        return set(self._names) <= {"budget_usd"}

    @property
    def _names(self) -> list[str]:
        return [name for name in SessionChange.__struct_fields__ if getattr(self, name) is not None]


def keep_change(workspace: Workspace, change: SessionChange, changed: SpawnRequest) -> None:
    """Store new secret values before the journal names them, and check that none is missing. Raises BadInput."""
    keep_values(workspace, env=change.env, mcp=change.mcp)
    with_values(workspace, changed)


def record_change(conn: Connection, id: str, change: SessionChange, changed: SpawnRequest, at: float) -> None:
    """Journal a change of a session's request, if there is one. Raises BadInput for a budget that is spent already."""
    session = views.session(conn, id)
    spent, dollars = session.spent.cost_usd or 0.0, change.budget_usd
    if dollars is not None and dollars <= spent:
        raise BadInput(
            f"the budget of ${dollars:.2f} is not more than {session.slug} has spent: ${spent:.4f}",
            hint=f"hv resume {session.slug} --budget {spent + 1:.2f}",
        )
    if (event := change.event(changed)) is not None:
        journal.record(conn, id, event, at=at)
