"""An installation of its own for as long as a block lasts: a scratch home, a real daemon, the real `hv`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiveyard.paths import default_paths


class Yard:
    """Calls of `hv` in one home; the image cache is the user's own."""

    def __init__(self, root: Path, *, config: str = "") -> None:
        self.root = root
        home = self.home = root / "home"
        home.mkdir()
        (home / "config.toml").write_text(config)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HIVEYARD_")}
        self.env = {**kept, "HIVEYARD_HOME": str(home), "HIVEYARD_CACHE": str(default_paths().cache)}
        script = Path(sys.executable).with_name("hv")
        self._hv = [str(script)] if script.exists() else [sys.executable, "-m", "hiveyard.cli.main"]

    def argv(self, *words: str) -> list[str]:
        return [*self._hv, *words]

    def hv(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.argv(*words), env=self.env, capture_output=True, stdin=subprocess.DEVNULL)

    def json(self, *words: str) -> Any:
        """Return the output of a verb with `--json`. Raises RuntimeError with its complaint when it says nothing."""
        done = self.hv(*words, "--json")
        if not done.stdout:
            raise RuntimeError(f"hv {' '.join(words)} ended with {done.returncode}: {done.stderr.decode()[-600:]}")
        return json.loads(done.stdout)

    def repository(self, files: int = 100) -> Path:
        """A repository with some files of a few lines, in one commit."""
        repo = self.root / "repo"
        repo.mkdir()
        for number in range(files):
            (repo / f"module_{number:03}.py").write_text(f"def f{number}():\n    return {number}\n" * 10)
        git = ["git", "-C", str(repo), "-c", "user.name=Bench", "-c", "user.email=bench@localhost"]
        subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
        subprocess.run([*git, "add", "--all"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", "Modules"], check=True)
        return repo


@contextmanager
def yard(config: str = "") -> Iterator[Yard]:
    """An installation; its tasks, machines and daemon end with the block."""
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        made = Yard(Path(scratch), config=config)
        try:
            yield made
        finally:
            if tasks := [task["id"] for task in json.loads(made.hv("ps", "--all", "--json").stdout or b"[]")]:
                made.hv("rm", "--force", *tasks)
            made.hv("stop-daemon")
