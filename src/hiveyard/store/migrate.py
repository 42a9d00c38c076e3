"""Migrate a database to the tables of this version, in one transaction, when the daemon opens it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from hiveyard.core.errors import StoreTooNew, StoreUnusable

HEAD = "0005"
"""The newest revision in migrations/versions; a test checks that. A database at this revision needs no Alembic, whose
import takes longer than the rest of opening."""

MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(conn: Connection, shown: str) -> None:
    """Create or upgrade the tables. `shown` names the database in errors.

    Raises StoreTooNew if a newer Hiveyard made them; StoreUnusable for the database of another program."""
    with conn.begin():
        current = _revision(conn, shown)
        if current != HEAD:
            _upgrade(conn, current, shown)


def _revision(conn: Connection, shown: str) -> str | None:
    tables = inspect(conn).get_table_names()
    if "alembic_version" in tables:
        revision = conn.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if revision is None else str(revision)
    if tables:
        found = ", ".join(sorted(tables)[:5])
        raise StoreUnusable(f"{shown} is the database of another program: it holds {found}")
    return None


def _upgrade(conn: Connection, current: str | None, shown: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # A Config interprets %, and a path may contain one.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise StoreTooNew(
            f"{shown} was made by a newer Hiveyard: its tables are at {current}, this version knows up to {HEAD}",
            hint="pip install --upgrade hiveyard",
        )
    command.upgrade(config, "head")
