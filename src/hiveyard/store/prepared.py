"""Prepare the statements that run for every event: compiled once per kind of database, then passed to its driver.

For one such call SQLAlchemy needs several times the work of SQLite. Such a statement may use only types that the
drivers accept and return unchanged (numbers, texts, bytes), and only its first row is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement


class Prepared:
    """A statement. `columns` are the columns of an INSERT without values."""

    def __init__(self, statement: Executable, columns: tuple[str, ...] = ()) -> None:
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, list[str]]] = {}

    def first(self, conn: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Execute the statement in the current transaction, with a value for each name, and return its first row or
        None. Raises DBAPIError, as `conn.execute` does."""
        text, order = self._compiled.get(conn.dialect.name) or self._compile(conn)
        cursor = conn.connection.cursor()
        try:
            cursor.execute(text, tuple([values[name] for name in order]))
            row: tuple[Any, ...] | None = cursor.fetchone()
        except Exception as error:
            assert conn.dialect.dbapi is not None
            raise DBAPIError.instance(text, None, error, conn.dialect.dbapi.Error, dialect=conn.dialect) from error
        finally:
            cursor.close()
        return row

    def _compile(self, conn: Connection) -> tuple[str, list[str]]:
        compiled = self._statement.compile(dialect=conn.dialect, column_keys=list(self._columns) or None)
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup is not None, f"{conn.dialect.driver} does not take positional parameters"
        found = self._compiled[conn.dialect.name] = (str(compiled), compiled.positiontup)
        return found
