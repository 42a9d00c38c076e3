"""Add sessions without a task: their request, stop reason, ports and snapshots."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _sessions()
    _ports()
    _snapshots()


def _sessions() -> None:
    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("request", sa.Text))
        table.add_column(sa.Column("parent", sa.Text))
        table.add_column(sa.Column("reason", sa.Text, nullable=False, server_default=""))
        table.add_column(sa.Column("feed_offset", sa.BigInteger, nullable=False, server_default="0"))


def _ports() -> None:
    op.create_table(
        "ports",
        sa.Column("host_port", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("guest_port", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("ports_by_session", "ports", ["session"])


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("after_turn", sa.Integer, nullable=False),
        sa.Column("feed_offset", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("snapshots_by_session", "snapshots", ["session"])
