"""Fixtures: a user's repository on this host, and the directories of a session."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hiveyard.core.commands import Command
from hiveyard.core.ports import Guest
from tests.processes.booth import Booth


@dataclass(frozen=True)
class Repo:
    """A repository that is used as a user would."""

    path: Path

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.path), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def write(self, name: str, text: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit(self, message: str, **files: str) -> str:
        for name, text in files.items():
            self.write(name.replace("__", "."), text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def snapshot(self) -> dict[str, bytes]:
        """Return the content of every file, .git included, to check that nothing changes."""
        return {str(p): p.read_bytes() for p in sorted(self.path.rglob("*")) if p.is_file() and not p.is_symlink()}


def init(path: Path, *options: str) -> Repo:
    """Create a repository without a commit."""
    subprocess.run(["git", "init", "--quiet", *options, str(path)], check=True)
    return Repo(path)


@dataclass(frozen=True)
class Session:
    """A session's directories on the host, and its guest."""

    root: Path
    booth: Booth

    @property
    def origin(self) -> Path:
        return self.root / "origin.git"

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def shared(self) -> Path:
        return self.booth.session

    @property
    def guest(self) -> Guest:
        return self.booth.guest()

    async def agent(self, script: str) -> str:
        """Run `script` in the guest's repository, as an agent would."""
        done = await self.guest.run(Command(shell=f"set -e\n{script}", cwd="/session/repo"))
        assert done.ok, done.stderr.decode()
        return done.stdout.decode()


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give git a user with a name and no other configuration."""
    home = tmp_path / "person"
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada\n\temail = ada@example.com\n[init]\n\tdefaultBranch = main\n"
    )
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))


@pytest.fixture
def empty(tmp_path: Path) -> Repo:
    return init(tmp_path / "mine")


@pytest.fixture
def repo(empty: Repo) -> Repo:
    empty.commit("First", README__md="one\n", app__py="print('hello')\n")
    empty.commit("Second", README__md="two\n")
    return empty


@pytest.fixture
def session(tmp_path: Path) -> Session:
    root = tmp_path / "session"
    root.mkdir()
    return Session(root, Booth(root))
