"""Fixtures of the store's tests. Each test that uses `where` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

from hiveyard.kit.clock import SystemClock
from hiveyard.store.database import Store, open_store
from hiveyard.store.schema import metadata

from .postgres_server import Server, find_tools, running_server

Where = Path | str


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    tools = find_tools()
    if tools is None:
        missing = "no initdb here: apt-get install postgresql"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with running_server(tools) as server:
        yield server


@contextmanager
def fresh_database(server: Server) -> Iterator[str]:
    name = f"hv{uuid4().hex[:12]}"
    url = server.create_database(name)
    try:
        yield url
    finally:
        server.drop_database(name)


@pytest.fixture(scope="session")
def shared_database(postgres: Server) -> Iterator[str]:
    """A database for all tests: to create one takes longer than most tests."""
    with fresh_database(postgres) as url:
        anyio.run(_migrated, url)
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "journal.db"
    anyio.run(_migrated, path)
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """A database with tables and no rows."""
    if request.param == "sqlite":
        return shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "journal.db")
    url: str = request.getfixturevalue("shared_database")
    request.getfixturevalue("postgres").truncate(url, list(metadata.tables))
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    """An empty database."""
    if request.param == "sqlite":
        yield tmp_path / "journal.db"
        return
    with fresh_database(request.getfixturevalue("postgres")) as url:
        yield url


async def _migrated(where: Where) -> None:
    async with open_store(where, clock=SystemClock()):
        pass


@pytest.fixture
async def store(where: Where) -> AsyncIterator[Store]:
    async with open_store(where, clock=SystemClock()) as opened:
        yield opened
