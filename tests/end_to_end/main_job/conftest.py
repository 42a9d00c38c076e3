"""Fixtures for Hiveyard as a user has it: real `hv` processes, the default image, real agents. Only the model and its
costs are not real."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.paths import default_paths
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Script
from tests.cli.conftest import Hv
from tests.end_to_end.main_job.host import files_with
from tests.end_to_end.main_job.probe import forms
from tests.engine.conftest import git, repo
from tests.support.dockerd import engine_socket
from tests.support.leaks import searched_directory
from tests.support.own_ports import own_ports

__all__ = ["repo"]

KEY = "sk-ant-Zq8TestSecret-of-nobody"
Event = dict[str, Any]
Report = dict[str, Any]


class Yard(Hv):
    """An installation with its own home and the user's cache, so that images and templates are found."""

    def __init__(self, home: Path, *, config: str = "", **env: str) -> None:
        super().__init__(home)
        (home / "config.toml").write_text(config)
        self.env |= {"HIVEYARD_CACHE": str(default_paths().cache), "ANTHROPIC_API_KEY": KEY, **env}

    @property
    def sessions(self) -> Path:
        return self.home / "data" / "sessions"

    def run(self, repo: Path, *words: str, timeout: float = 900.0) -> tuple[int, Report]:
        """Run `hv run --json`; return its exit code and its final object."""
        done = self("run", str(repo), *words, "--json", timeout=timeout)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout.count("\n") == 1, done.stderr
        report: Report = json.loads(done.stdout)
        assert "status" in report, report
        skip_what_this_host_has_not(report)
        return done.returncode, report

    def bodies(self, task: str, *types: str) -> list[Event]:
        """Return the bodies of a task's events of some types (of all types if none is named)."""
        found = [event["body"] for event in self.events(task)]
        return [body for body in found if not types or body["type"] in types]

    def raw(self, task: str) -> bytes:
        """Return the agent's output, byte for byte."""
        return subprocess.run(self.argv("events", "--raw", task), env=self.env, capture_output=True).stdout

    def close(self) -> None:
        """Remove every task and session, stop the daemon, and check that nothing is left and no key was written."""
        try:
            assert self._written_keys() == []
            tasks, sessions = self.json("ps", "-a"), self.json("list", "-a")
            assert isinstance(tasks, list), tasks
            for id in {work["id"] for work in (*tasks, *sessions)}:  # a task may go on as a session
                removed = self("rm", "-f", id)
                assert removed.returncode == 0, removed.stderr
            assert list(self.sessions.iterdir()) == []
            assert list((self.home / "run" / "doors").iterdir()) == []
        finally:
            stopped = self("stop-daemon")
        assert stopped.returncode == 0, stopped.stderr

    def _written_keys(self) -> list[str]:
        """Return the files with a key in them, also disks and memories of machines, except the key file itself."""
        keys = [value for name, value in self.env.items() if name.endswith("_API_KEY") and value]
        found = files_with(self.home, set().union(*map(forms, keys))) if keys else []
        return [path for path in found if Path(path) != self.home / "keys.toml"]


def skip_what_this_host_has_not(report: Report) -> None:
    """Skip the test if a provider is missing; in CI fail it."""
    error = report["error"] or {"code": ""}
    if error["code"] in ("provider.unavailable", "provider.no_accelerator") and not os.environ.get("CI"):
        pytest.skip(error["message"])


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


Speaking = Callable[..., AbstractContextManager[ScriptedModel]]


@pytest.fixture(scope="session")
def speaking(portal: BlockingPortal) -> Speaking:
    """Return a context manager: `with speaking(script) as model:` starts a model that follows a script."""

    @contextmanager
    def speak(script: Script, **more: Any) -> Iterator[ScriptedModel]:
        serving = portal.wrap_async_context_manager(scripted_model(script, **more))
        with ExitStack() as stack:
            model = serving.__enter__()
            # A failure of the test must not pass through the server's task group, which would wrap it.
            stack.callback(serving.__exit__, None, None, None)
            yield model

    return speak


@pytest.fixture(scope="session")
def docker_socket(portal: BlockingPortal) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            engine = engine_socket(default_paths().cache / "test-docker")
            yield stack.enter_context(portal.wrap_async_context_manager(engine))
        except ProviderUnavailable as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(error.message)


Opening = Callable[..., AbstractContextManager[Yard]]


@pytest.fixture(scope="session")
def opening(request: pytest.FixtureRequest) -> Opening:
    """Return a context manager: `with opening("qemu", model) as yard:` makes an installation that uses a provider and a
    model."""

    @contextmanager
    def open_yard(provider: str, model: ScriptedModel | None = None, config: str = "", **env: str) -> Iterator[Yard]:
        if provider == "docker":
            config += f'\n[docker]\nsocket = "{request.getfixturevalue("docker_socket")}"\n'
        config = f'[engine]\nprovider = "{provider}"\ndisk_reserve_mib = 1\n{config}{own_ports()}'
        # No program listens on port 9: without a model there is no upstream.
        upstream = model.url if model else "http://127.0.0.1:9"
        given = {"HIVEYARD_ANTHROPIC_UPSTREAM": upstream, "HIVEYARD_OPENAI_UPSTREAM": upstream, **env}
        # The home contains sockets, which need short paths.
        with searched_directory() as scratch:
            yard = Yard(scratch / "home", config=config, **given)
            try:
                yield yard
            finally:
                yard.close()

    return open_yard


def patched(repo: Path, report: Report, into: Path) -> Path:
    """Return a fresh clone of the repository with the run's patch applied, after `git apply --check`."""
    git(repo.parent, "clone", "-q", str(repo), str(into))
    git(into, "apply", "--check", report["patch"])
    git(into, "apply", "--index", report["patch"])
    return into


def types(events: Sequence[Event]) -> list[str]:
    return [event["body"]["type"] for event in events]


def only(found: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    assert len(found) == 1, found
    return found[0]
