"""Run a PostgreSQL server for the tests: private data, a unix socket, an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NAME = "hive"


@dataclass(frozen=True)
class Server:
    tools: Path
    sockets: Path

    def create_database(self, name: str) -> str:
        """Create a database, and return its URL."""
        self._sql(f'CREATE DATABASE "{name}"')
        return f"postgresql://{NAME}@/{name}?host={self.sockets}"

    def drop_database(self, name: str) -> None:
        self._sql(f'DROP DATABASE "{name}" WITH (FORCE)')

    def end_connections(self, name: str) -> None:
        self._sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

    def truncate(self, url: str, tables: list[str]) -> None:
        self._sql(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY", name_of(url))

    def _sql(self, statement: str, database: str = "postgres") -> None:
        argv: list[str | Path] = [self.tools / "psql", "-h", self.sockets, "-U", NAME]
        subprocess.run([*argv, "-d", database, "-qAtc", statement], check=True, capture_output=True)


def name_of(url: str) -> str:
    """Return the name of the database in a URL from `create_database`."""
    return url.removeprefix(f"postgresql://{NAME}@/").split("?")[0]


def find_tools() -> Path | None:
    """Return the directory of initdb, which Debian does not put in PATH."""
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if packaged:
        return packaged[-1].parent
    found = shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def running_server(tools: Path) -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="hv-pg-", dir="/tmp"))
    who = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    user = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": ()} if who else {}
    if who:
        os.chown(home, who.pw_uid, who.pw_gid)
    data = home / "data"
    init = [tools / "initdb", "-D", data, "-U", NAME, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    try:
        subprocess.run(init, check=True, capture_output=True, cwd=home, **user)  # type: ignore[call-overload]
        # The server is not killed by the tests, so it need not wait for the disk.
        serve = [tools / "postgres", "-D", data, "-k", home, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(serve, stdout=log, stderr=log, cwd=home, **user)  # type: ignore[call-overload]
        try:
            _wait(tools, home, process)
            yield Server(tools, home)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _wait(tools: Path, home: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        if subprocess.run([tools / "pg_isready", "-q", "-h", home]).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start: {(home / 'log').read_text()[-2000:]}")
