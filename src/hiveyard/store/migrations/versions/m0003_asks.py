"""Add the questions that wait for a user."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "asks",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("turn", sa.Integer),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("tool", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("asked_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
    )
    op.create_index("asks_by_session", "asks", ["session"])
    op.create_index("asks_by_state", "asks", ["state"])
