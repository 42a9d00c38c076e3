"""An engine with real parts: SQLite, git, doors, namespaces. Only the model is scripted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal

from hiveyard import config
from hiveyard.core.events import Event
from hiveyard.daemon import resources
from hiveyard.engine.engine import Engine, running
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.tasks.view import TaskView
from hiveyard.machines.docker import DockerSettings
from hiveyard.machines.qemu import QemuProvider
from hiveyard.paths import default_paths
from hiveyard.store.settings import StoreSettings
from tests.store.postgres_server import Server, find_tools, running_server

STORE = "HIVEYARD_TEST_STORE"
"""The environment variable with the kind of the journal's database; see `make long PART=postgres`."""


class Yard:
    """An engine that can be stopped as `kill -9` would, and started again on the files that it left."""

    def __init__(self, home: Path, settings: config.Settings, environment: Mapping[str, str]) -> None:
        self.home = home
        self.paths = default_paths({"HIVEYARD_HOME": str(home), "HOME": str(home)})
        self.settings = settings
        self.environment = dict(environment)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Engine]:
        async with AsyncExitStack() as stack:
            parts = await stack.enter_async_context(resources(self.paths, self.settings, self.environment))
            qemu = parts.providers["qemu"]
            assert isinstance(qemu, QemuProvider)
            stack.push_async_callback(qemu.aclose)
            yield await stack.enter_async_context(running(parts))

    async def clear(self) -> None:
        """End the machines that a failed test left."""
        async with resources(self.paths, self.settings, self.environment) as parts:
            local = parts.providers["bubblewrap"]
            for name in await local.names():
                await local.terminate(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    tools = find_tools()
    assert tools is not None, "apt-get install postgresql"
    with running_server(tools) as server:
        yield server


@pytest.fixture
def journal_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of the journal's database: a new one in PostgreSQL if the environment asks for it, else "", a
    file."""
    if os.environ.get(STORE) != "postgresql":
        yield ""
        return
    server: Server = request.getfixturevalue("postgres_server")
    name = f"hv{uuid4().hex[:12]}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture
def file_journal(journal_url: str) -> None:
    """Let a test run only where the journal is a file."""
    if journal_url:
        pytest.skip("the journal is a database elsewhere")


@pytest.fixture
def yard(tmp_path: Path, journal_url: str) -> Iterator[Yard]:
    settings = config.Settings(
        store=StoreSettings(url=journal_url),
        engine=EngineSettings(provider="bubblewrap", image="host", disk_reserve_mib=1, timeout=120.0),
        docker=DockerSettings(socket=str(tmp_path / "no-engine.sock")),  # the host's own keeps images of its user
    )
    yard = Yard(tmp_path / "home", settings, {})
    yield yard
    if any((yard.paths.machines / "bubblewrap").glob("hv-*")):
        with start_blocking_portal() as portal:
            portal.call(yard.clear)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two files and one commit."""
    path = tmp_path / "repo"
    path.mkdir()
    (path / "a.txt").write_text("one\n")
    (path / "b.txt").write_text("two\n")
    git(path, "init", "-q", "-b", "main")
    git(path, "add", ".")
    git(path, "commit", "-q", "-m", "first")
    return path


def git(repo: Path, *words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    done = subprocess.run(["git", "-C", str(repo), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def asked(repo: Path, command: str, **more: object) -> TaskRequest:
    """A task for the command agent."""
    return TaskRequest(repo=str(repo), prompt="do it", agent="command", command=command, **more)  # type: ignore[arg-type]


async def done(engine: Engine, id: str) -> TaskView:
    """Wait for the end of a task."""
    async for event in engine.follow(id, after=0):
        if event.body.type in ("task.completed", "task.failed", "task.cancelled"):
            break
    return await engine.report(id)


async def told(engine: Engine, id: str) -> list[Event]:
    return await engine.events(id, after=0, limit=10_000)
