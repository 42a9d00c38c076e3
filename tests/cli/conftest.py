"""The real `hv` with a real daemon, in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hiveyard.api.client import Client
from hiveyard.core.errors import DaemonUnreachable
from hiveyard.paths import default_paths
from tests.engine.conftest import repo
from tests.support.leaks import has_mark, marked_files, searched_directory

__all__ = ["repo"]

CONFIG = """
[web]
listen = "127.0.0.1:0"
[engine]
provider = "bubblewrap"
image = "host"
disk_reserve_mib = 1
"""


class Hv:
    """An installation: its home, and calls of its command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("HIVEYARD_")}
        self.env["HIVEYARD_HOME"] = str(home)
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(CONFIG)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "hiveyard.cli.main", *words]

    def __call__(self, *words: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        if words[:1] == ("rm",):
            found = marked_files(self.home)  # removed files are searched before
            assert not found, f"a secret was written down: {found}"
        done = subprocess.run(
            self.argv(*words), env=self.env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        assert not has_mark(done.stdout + done.stderr), "a secret was printed"
        return done

    def json(self, *words: str) -> Any:
        done = self(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def daemon(self) -> Client:
        """The daemon itself, for what a test does beside the verbs that it is about: each `hv` is a process."""
        return Client(default_paths({"HIVEYARD_HOME": str(self.home)}).socket)

    def daemon_pid(self) -> int | None:
        try:
            return int(self.daemon.call("GET", "/v1/version")["pid"])
        except DaemonUnreachable:
            return None

    def kill_daemon(self) -> None:
        if pid := self.daemon_pid():
            os.kill(pid, signal.SIGKILL)

    def clear(self) -> None:
        """Remove every task."""
        known = self.daemon.call("GET", "/v1/tasks", all=True) if self.daemon_pid() else self.json("ps", "-a")
        if tasks := [task["id"] for task in known]:
            assert self("rm", "-f", *tasks).returncode == 0

    def events(self, task: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("events", task).stdout.splitlines()]


@pytest.fixture(scope="session")
def shared_home() -> Iterator[Path]:
    """The home of an installation that many tests use one after the other; the first verb starts its daemon."""
    with searched_directory() as scratch:
        hv = Hv(scratch / "home")
        yield hv.home
        assert hv("stop-daemon").returncode == 0


@pytest.fixture
def hv(shared_home: Path) -> Iterator[Hv]:
    """The shared installation, without tasks. A test may kill its daemon, and may not change its settings."""
    hv = Hv(shared_home)
    yield hv
    hv.env = Hv(shared_home).env
    hv.clear()


@pytest.fixture
def own_hv(tmp_path: Path) -> Iterator[Hv]:
    """An installation for one test: with settings or an environment of its own, or without a daemon."""
    hv = Hv(tmp_path / "home")
    yield hv
    if not (hv.home / "data").is_dir():
        return  # no daemon was started
    hv.clear()
    assert hv("stop-daemon").returncode == 0
