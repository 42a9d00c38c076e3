"""Define the tables. `migrations/` creates them, and a test checks that both are equal.

Columns use only types that SQLite and PostgreSQL share.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text, false
from sqlalchemy import true as sa_true

metadata = MetaData()

# SQLite numbers rows only in a column whose type is exactly INTEGER. AUTOINCREMENT never uses a number again.
Sequence = BigInteger().with_variant(Integer(), "sqlite")

events = Table(
    "events",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("session", Text, nullable=False),
    Column("turn", Integer),
    Column("type", Text, nullable=False, server_default=""),
    Column("body", Text, nullable=False),
    Column("raw", LargeBinary),
    Index("events_by_session", "session", "seq"),
    Index("events_by_type", "session", "type", "seq"),
    sqlite_autoincrement=True,
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("provider", Text),
    Column("tier", Text),
    Column("machine", Text),
    Column("failure", Text),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("cancel_asked_at", Double),
    Column("ended_at", Double),
    Index("tasks_by_slug", "slug"),
    Index("tasks_by_state", "state"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("repo", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("activity", Text, nullable=False),
    Column("branch", Text),
    Column("base", Text),
    Column("machine", Text),
    Column("provider", Text),
    Column("tier", Text),
    Column("failure", Text),
    Column("request", Text),
    Column("own", Boolean, nullable=False, server_default=sa_true()),
    Column("parent", Text),
    Column("reason", Text, nullable=False, server_default=""),
    Column("feed_offset", BigInteger, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_usd", Double, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Index("sessions_by_slug", "slug"),
)

machines = Table(
    "machines",
    metadata,
    Column("name", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("machines_by_session", "session"),
)

ports = Table(
    "ports",
    metadata,
    Column("host_port", Integer, primary_key=True, autoincrement=False),
    Column("session", Text, nullable=False),
    Column("guest_port", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ports_by_session", "session"),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("live", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("after_turn", Integer, nullable=False),
    Column("feed_offset", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("snapshots_by_session", "session"),
)

turns = Table(
    "turns",
    metadata,
    Column("session", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("program", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("pid", BigInteger),
    Column("output_offset", BigInteger, nullable=False),
    Column("stderr_offset", BigInteger, nullable=False),
    Column("outcome", Text),
    Column("exit_code", Integer),
    Column("failure", Text),
    Column("conversation", Text),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
)

asks = Table(
    "asks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("turn", Integer),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("options", Text, nullable=False),
    Column("answer", Text),
    Column("asked_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("asker", Text, nullable=False, server_default=""),
    Column("target", Text, nullable=False, server_default=""),
    Column("multi", Boolean, nullable=False, server_default=false()),
    Column("expires_at", Double),
    Column("answered_by", Text, nullable=False, server_default=""),
    Index("asks_by_session", "session"),
    Index("asks_by_state", "state"),
)

results = Table(
    "results",
    metadata,
    Column("session", Text, primary_key=True),
    Column("branch", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("head", Text, nullable=False),
    Column("commits", Integer, nullable=False),
    Column("files", Integer, nullable=False),
    Column("insertions", BigInteger, nullable=False),
    Column("deletions", BigInteger, nullable=False),
    Column("leftover", Boolean, nullable=False),
    Column("collected_at", Double, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("name", Text, primary_key=True),
    Column("session", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("accepts", Text),
    Column("note", Text, nullable=False),
    Column("nap_until", Double),
    Column("stopped", Boolean, nullable=False),
    Column("joined_at", Double, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("position", Sequence, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("session", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("thread", Text, nullable=False),
    Column("reply_to", Text, nullable=False),
    Column("hops", Integer, nullable=False),
    Column("urgent", Boolean, nullable=False),
    Column("files", Text, nullable=False),
    Column("ask", Text, nullable=False),
    Column("held_by", Text, nullable=False),
    Column("turn", Integer),
    Column("sent_at", Double, nullable=False),
    Column("ended_at", Double),
    Index("messages_by_recipient", "session", "state", "position"),
    Index("messages_by_pair", "sender", "recipient", "sent_at"),
    sqlite_autoincrement=True,
)

reminders = Table(
    "reminders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("every", Double),
    Column("hops", Integer, nullable=False),
    Column("set_at", Double, nullable=False),
    Index("reminders_by_session", "session"),
)
