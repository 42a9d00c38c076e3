"""Fixtures for sessions as a user has them: real `hv` processes, a real daemon, and a puppet as the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from hiveyard.paths import default_paths
from tests.cli.conftest import Hv
from tests.end_to_end.main_job.conftest import docker_socket, portal
from tests.engine.conftest import git, repo
from tests.support.leaks import searched_directory
from tests.support.own_ports import own_ports

__all__ = ["docker_socket", "git", "portal", "repo"]
Session = dict[str, Any]
SETTINGS = '[engine]\nprovider = "{}"\nagent = "puppet"\ndisk_reserve_mib = 1\n'


class Stage(Hv):
    """An installation whose daemon knows the puppet, in machines of bubblewrap unless its settings say otherwise."""

    def __init__(self, home: Path, settings: str = "", **env: str) -> None:
        super().__init__(home)
        config = home / "config.toml"
        config.write_text(settings or config.read_text() + 'agent = "puppet"\n')
        self.programs = home / "bin"
        """Programs that the daemon takes before those of the host. Empty, unless a test puts one there."""
        self.programs.mkdir()
        self.env |= {"PATH": f"{self.programs}:{self.env['PATH']}", **env}
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.wake()

    def wake(self) -> None:
        """Start the daemon; return when it serves requests."""
        read, write = os.pipe()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tests.support.puppet", "--ready-fd", str(write)],
            env=self.env,
            cwd=Path(__file__).parents[3],
            pass_fds=[write],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.daemons.append(daemon)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert pipe.read() == "ready"

    def spawn(self, repo: Path, *words: str, timeout: float = 120.0) -> str:
        """Spawn a session; return its id once it runs."""
        done = self("spawn", str(repo), *words, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    def prompted(self, repo: Path) -> str:
        """Spawn a session and wait for the end of its first turn."""
        id = self.spawn(repo, "-m", "remember apples")
        self.until(id, lambda body: body["type"] == "turn.ended")
        return id

    def session(self, id: str) -> Session:
        found: Session = self.daemon.call("GET", f"/v1/sessions/{id}")
        return found

    def sessions(self) -> list[Session]:
        found: list[Session] = self.daemon.call("GET", "/v1/sessions", all=True)
        return found

    def events(self, id: str) -> list[dict[str, Any]]:
        return list(self.daemon.stream("GET", f"/v1/tasks/{id}/events"))

    def said(self, id: str) -> list[str]:
        """Return the last message of each of the agent's turns."""
        return [event["body"]["text"] for event in self.events(id) if event["body"]["type"] == "agent.ended"]

    def until(self, id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Follow a session until the body of an event fulfils a condition."""
        with closing(self.daemon.stream("GET", f"/v1/tasks/{id}/events", follow=True)) as events:  # type: ignore[type-var]
            return next(event["body"] for event in events if true(event["body"]))

    def clear(self) -> None:
        """Remove every session and task. The daemon keeps running; a killed one is started again."""
        if self.daemon_pid() is None:
            self.wake()
        found: list[Session] = self.daemon.call("GET", "/v1/sessions", all=True, tasks=True)
        if sessions := [session["id"] for session in found]:
            assert self("rm", "-f", *sessions).returncode == 0
        assert list((self.home / "data" / "sessions").iterdir()) == []

    def close(self) -> None:
        """Remove every session, stop the daemon, and check that nothing is left."""
        try:
            self.clear()
            assert self("stop-daemon").returncode == 0
        finally:
            for daemon in self.daemons:
                daemon.kill()
                daemon.wait(30)


@contextmanager
def opened(settings: str, **env: str) -> Iterator[Stage]:
    with searched_directory() as scratch:
        stage = Stage(scratch / "home", settings, **env)
        yield stage
        stage.close()


# One installation for each provider, shared by all tests of a process.
@pytest.fixture(scope="session")
def bubblewrap_stage() -> Iterator[Stage]:
    with opened(SETTINGS.format("bubblewrap") + 'image = "host"\n' + own_ports()) as stage:
        yield stage


@pytest.fixture(scope="session")
def docker_stage(docker_socket: Path) -> Iterator[Stage]:
    settings = f'{SETTINGS.format("docker")}[docker]\nsocket = "{docker_socket}"\n{own_ports()}'
    with opened(settings, HIVEYARD_CACHE=str(default_paths().cache)) as stage:
        yield stage


@pytest.fixture(scope="session")
def qemu_stage() -> Iterator[Stage]:
    with opened(SETTINGS.format("qemu") + own_ports(), HIVEYARD_CACHE=str(default_paths().cache)) as stage:
        yield stage


def lent(stage: Stage) -> Iterator[Stage]:
    """Yield the shared installation, without sessions before and after the test."""
    env = dict(stage.env)
    yield stage
    stage.env = env
    stage.clear()


@pytest.fixture
def stage(bubblewrap_stage: Stage) -> Iterator[Stage]:
    yield from lent(bubblewrap_stage)


QUICK = ("bubblewrap", pytest.param("docker", marks=pytest.mark.real))


@pytest.fixture(params=[*QUICK, pytest.param("qemu", marks=pytest.mark.real)])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield an installation for each provider."""
    yield from lent(request.getfixturevalue(f"{request.param}_stage"))


@pytest.fixture(params=QUICK)
def without_vms(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Yield an installation for each provider except VMs, which have their own tests for these cases."""
    yield from lent(request.getfixturevalue(f"{request.param}_stage"))
