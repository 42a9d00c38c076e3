"""Prepared statements behave like SQLAlchemy's own for their callers."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from hiveyard.core.errors import StoreError
from hiveyard.store import schema
from hiveyard.store.database import Store
from hiveyard.store.prepared import Prepared

pytestmark = pytest.mark.anyio

_ports = schema.ports.c
_INSERT = Prepared(
    insert(schema.ports).returning(_ports.host_port), ("host_port", "session", "guest_port", "created_at")
)
_ALL = Prepared(select(_ports.host_port, _ports.session).order_by(_ports.host_port))
ROW = {"host_port": 2201, "session": "s1 ' ☂", "guest_port": 22, "created_at": 1.5}


async def test_the_first_row_is_returned_or_none(store: Store) -> None:
    def insert_two(conn: Connection) -> list[tuple[Any, ...] | None]:
        return [_ALL.first(conn, {}), _INSERT.first(conn, ROW), _INSERT.first(conn, ROW | {"host_port": 2202})]

    assert await store.write(insert_two) == [None, (2201,), (2202,)]
    assert await store.read(lambda conn: _ALL.first(conn, {})) == (2201, "s1 ' ☂")


async def test_a_refused_row_is_a_store_error_and_only_its_write_is_undone(store: Store) -> None:
    await store.write(lambda conn: _INSERT.first(conn, ROW))
    with pytest.raises(StoreError, match="refused a row"):
        await store.write(lambda conn: _INSERT.first(conn, ROW))
    await store.write(lambda conn: _INSERT.first(conn, ROW | {"host_port": 2203}))
    assert await store.read(lambda conn: _ALL.first(conn, {})) == (2201, "s1 ' ☂")
