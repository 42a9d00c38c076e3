"""The directories that Hiveyard uses. The import is cheap, because the CLI imports this module first."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import BadInput

_OURS = ("HIVEYARD_HOME", "HIVEYARD_CACHE")
_NAMES = (*_OURS, "HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR")


class Paths(NamedTuple):
    """The directories of one installation.

    `data` must not be lost (database, sessions); `cache` can be made again (images, templates); `run` has sockets and
    locks; `config` is the settings file, which may be absent.
    """

    data: Path
    cache: Path
    run: Path
    config: Path

    @property
    def sessions(self) -> Path:
        return self.data / "sessions"

    @property
    def hive(self) -> Path:
        return self.data / "hive"

    @property
    def database(self) -> Path:
        return self.data / "hiveyard.db"

    @property
    def machines(self) -> Path:
        return self.data / "machines"

    @property
    def keys(self) -> Path:
        return self.config.with_name("keys.toml")

    @property
    def ssh(self) -> Path:
        return self.data / "ssh"

    @property
    def web(self) -> Path:
        return self.data / "web"

    @property
    def doors(self) -> Path:
        return self.run / "doors"

    @property
    def socket(self) -> Path:
        return self.run / "api.sock"

    @property
    def lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def log(self) -> Path:
        return self.data / "daemon.log"


def resolved_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment with which a program finds the same directories, wherever it runs. Raises BadInput for a
    path that is not UTF-8."""
    resolved = dict(os.environ if env is None else env)
    for name in _NAMES:
        if value := resolved.get(name):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise BadInput(f"{name} is not UTF-8: {os.fsencode(value)!r}") from None
            path = Path(value).expanduser() if name in _OURS else Path(value)
            resolved[name] = str(path.absolute())
    return resolved


def host_ports_directory(env: Mapping[str, str] | None = None) -> Path:
    """Return the directory that all daemons of this user share, whatever their homes: it records which daemon holds
    which port of the host."""
    env = resolved_environment(env)
    return Path(env.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"hiveyard-ports-{os.geteuid()}"


def default_paths(env: Mapping[str, str] | None = None) -> Paths:
    """Return the directories: all below `$HIVEYARD_HOME` when it is set, else the XDG directories. `$HIVEYARD_CACHE`
    moves the cache."""
    env = resolved_environment(env)
    home = Path(env.get("HOME") or Path.home())
    if root := env.get("HIVEYARD_HOME"):
        base = Path(root)
        found = Paths(base / "data", base / "cache", base / "run", base / "config.toml")
    else:
        data = Path(env.get("XDG_DATA_HOME") or home / ".local" / "share") / "hiveyard"
        cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "hiveyard"
        config = Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "hiveyard" / "config.toml"
        # Not in XDG_RUNTIME_DIR: cron and sudo do not have it; they would find no daemon and start a second one on the
        # same data. It is also removed when the user logs out, while sessions may still run.
        found = Paths(data, cache, data / "run", config)
    if moved := env.get("HIVEYARD_CACHE"):
        found = found._replace(cache=Path(moved))
    return found
