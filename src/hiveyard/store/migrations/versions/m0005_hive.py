"""Add members, their messages and reminders, and questions between them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _extend_asks()
    op.create_table(
        "members",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("session", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("accepts", sa.Text),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("nap_until", sa.Double),
        sa.Column("stopped", sa.Boolean, nullable=False),
        sa.Column("joined_at", sa.Double, nullable=False),
    )
    _create_messages()
    op.create_table(
        "reminders",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("every", sa.Double),
        sa.Column("hops", sa.Integer, nullable=False),
        sa.Column("set_at", sa.Double, nullable=False),
    )
    op.create_index("reminders_by_session", "reminders", ["session"])


def _extend_asks() -> None:
    for column in (
        sa.Column("asker", sa.Text, nullable=False, server_default=""),
        sa.Column("target", sa.Text, nullable=False, server_default=""),
        sa.Column("multi", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("expires_at", sa.Double),
        sa.Column("answered_by", sa.Text, nullable=False, server_default=""),
    ):
        op.add_column("asks", column)


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("position", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("recipient", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("thread", sa.Text, nullable=False),
        sa.Column("reply_to", sa.Text, nullable=False),
        sa.Column("hops", sa.Integer, nullable=False),
        sa.Column("urgent", sa.Boolean, nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("ask", sa.Text, nullable=False),
        sa.Column("held_by", sa.Text, nullable=False),
        sa.Column("turn", sa.Integer),
        sa.Column("sent_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        sqlite_autoincrement=True,
    )
    op.create_index("messages_by_recipient", "messages", ["session", "state", "position"])
    op.create_index("messages_by_pair", "messages", ["sender", "recipient", "sent_at"])
