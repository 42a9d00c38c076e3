"""Give events a column for their type and each task's session its request; mark the sessions that no task made."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_sessions = sa.table("sessions", sa.column("id"), sa.column("request"), sa.column("own"), sa.column("agent"))
_tasks = sa.table("tasks", sa.column("id"), sa.column("request"))
_OF_TURN = ("prompt", "timeout", "keep")


def upgrade() -> None:
    op.add_column("events", sa.Column("type", sa.Text, nullable=False, server_default=""))
    # Every body begins with its type: {"type":"task.created",...
    kind = "substr(body, 10, instr(substr(body, 10), '\"') - 1)"
    if op.get_bind().dialect.name == "postgresql":
        kind = kind.replace("instr(", "strpos(")
    op.execute(f"UPDATE events SET type = {kind}")  # noqa: S608 (nothing in it comes from anybody)
    op.create_index("events_by_type", "events", ["session", "type", "seq"])
    op.add_column("sessions", sa.Column("own", sa.Boolean, nullable=False, server_default=sa.true()))
    conn = op.get_bind()
    made = sa.select(_sessions.c.id, _sessions.c.agent, _tasks.c.request)
    made = made.join_from(_sessions, _tasks, _sessions.c.id == _tasks.c.id).where(_sessions.c.request.is_(None))
    for id, agent, text in conn.execute(made).all():
        request = {key: value for key, value in msgspec.json.decode(text).items() if key not in _OF_TURN}
        values = {"own": False, "request": msgspec.json.encode({**request, "agent": agent}).decode()}
        conn.execute(sa.update(_sessions).where(_sessions.c.id == id).values(values))
