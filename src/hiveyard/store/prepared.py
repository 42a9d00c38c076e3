"""Statements that run for every event: compiled once for each kind of database, then handed to its driver as they are.

SQLAlchemy's work for one call is several times that of SQLite's. Only types that the drivers take and give unchanged
(numbers, texts, bytes) may be in such a statement, and nothing but its first row is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement


class Prepared:
    """One statement; `columns` are those of an INSERT without values."""

    def __init__(self, statement: Executable, columns: tuple[str, ...] = ()) -> None:
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, list[str]]] = {}

    def first(self, conn: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """Execute it within the transaction at hand, with a value for each name; its first row, None when there is
        none. Raises DBAPIError, as `conn.execute` does."""
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
        assert compiled.positiontup is not None, f"{conn.dialect.driver} does not take its parameters in order"
        found = self._compiled[conn.dialect.name] = (str(compiled), compiled.positiontup)
        return found
