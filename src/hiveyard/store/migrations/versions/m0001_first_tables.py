"""Create the first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _events()
    _tasks()
    _sessions()
    _machines()
    _turns()
    _results()


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("turn", sa.Integer),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("raw", sa.LargeBinary),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_session", "events", ["session", "seq"])


def _tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("tier", sa.Text),
        sa.Column("machine", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("cancel_asked_at", sa.Double),
        sa.Column("ended_at", sa.Double),
    )
    op.create_index("tasks_by_slug", "tasks", ["slug"])
    op.create_index("tasks_by_state", "tasks", ["state"])


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("slug", sa.Text, nullable=False),
        sa.Column("repo", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("activity", sa.Text, nullable=False),
        sa.Column("branch", sa.Text),
        sa.Column("base", sa.Text),
        sa.Column("machine", sa.Text),
        sa.Column("provider", sa.Text),
        sa.Column("tier", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger, nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
    )
    op.create_index("sessions_by_slug", "sessions", ["slug"])


def _machines() -> None:
    op.create_table(
        "machines",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
    )
    op.create_index("machines_by_session", "machines", ["session"])


def _turns() -> None:
    op.create_table(
        "turns",
        sa.Column("session", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("agent", sa.Text, nullable=False),
        sa.Column("program", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger),
        sa.Column("output_offset", sa.BigInteger, nullable=False),
        sa.Column("stderr_offset", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("exit_code", sa.Integer),
        sa.Column("failure", sa.Text),
        sa.Column("conversation", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
    )


def _results() -> None:
    op.create_table(
        "results",
        sa.Column("session", sa.Text, primary_key=True),
        sa.Column("branch", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("commits", sa.Integer, nullable=False),
        sa.Column("files", sa.Integer, nullable=False),
        sa.Column("insertions", sa.BigInteger, nullable=False),
        sa.Column("deletions", sa.BigInteger, nullable=False),
        sa.Column("leftover", sa.Boolean, nullable=False),
        sa.Column("collected_at", sa.Double, nullable=False),
    )
