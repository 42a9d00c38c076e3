"""Sessions as a person has them: real `hv` processes, a real daemon, and a puppet for an agent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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


class Stage(Hv):
    """An installation whose daemon knows the puppet, in machines of bubblewrap unless its settings say otherwise."""

    def __init__(self, home: Path, settings: str = "", **env: str) -> None:
        super().__init__(home)
        config = home / "config.toml"
        config.write_text(settings or config.read_text() + 'agent = "puppet"\n')
        self.env |= env
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.wake()

    def wake(self) -> None:
        """Start the daemon; returns when it answers."""
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
        """A session that runs; its id."""
        done = self("spawn", str(repo), *words, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    def prompted(self, repo: Path) -> str:
        """A session that has done what it was told first."""
        id = self.spawn(repo, "-m", "remember apples")
        self.until(id, lambda body: body["type"] == "turn.ended")
        return id

    def session(self, id: str) -> Session:
        found: Session = self.json("show", id)
        return found

    def said(self, id: str) -> list[str]:
        """What the agent ended its turns with."""
        return [event["body"]["text"] for event in self.events(id) if event["body"]["type"] == "agent.ended"]

    def until(self, id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Follow a session until an event's body is so."""
        follower = self.start("logs", "-f", "--json", id)
        assert follower.stdout is not None
        try:
            for line in follower.stdout:
                body: dict[str, Any] = json.loads(line)["body"]
                if true(body):
                    return body
        finally:
            follower.kill()
            follower.communicate()
        raise AssertionError("the events ended")

    def close(self) -> None:
        """Remove every session and stop the daemon; nothing may be left."""
        try:
            self._close()
        finally:
            # What one test leaves must not be the next one's failure.
            for daemon in self.daemons:
                daemon.kill()
                daemon.wait()

    def _close(self) -> None:
        if self.daemon_pid() is None:
            self.wake()
        for session in self.json("list", "-a"):
            assert self("rm", "-f", session["id"]).returncode == 0
        assert list((self.home / "data" / "sessions").iterdir()) == []
        assert self("stop-daemon").returncode == 0
        for daemon in self.daemons:
            daemon.wait(30)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "home")
    yield stage
    stage.close()


def installed(provider: str, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """One whose machines are of that provider."""
    settings = f'[engine]\nprovider = "{provider}"\nagent = "puppet"\ndisk_reserve_mib = 1\n'
    if provider == "docker":
        settings += f'[docker]\nsocket = "{request.getfixturevalue("docker_socket")}"\n'
    settings += own_ports()
    with searched_directory() as scratch:
        home = scratch / "home"
        real = {"settings": settings, "HIVEYARD_CACHE": str(default_paths().cache)}
        stage = Stage(home, **({} if provider == "bubblewrap" else real))
        yield stage
        stage.close()


QUICK = ("bubblewrap", pytest.param("docker", marks=pytest.mark.real))


@pytest.fixture(params=[*QUICK, pytest.param("qemu", marks=pytest.mark.real)])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """An installation for each provider that its sessions run on."""
    yield from installed(request.param, request)


@pytest.fixture(params=QUICK)
def without_vms(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """As `everywhere`, for stories that VMs have tests of their own for: an emulated one takes its time."""
    yield from installed(request.param, request)
