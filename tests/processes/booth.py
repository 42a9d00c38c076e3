"""A guest without a machine: each command in mount namespaces of its own, on the processes of this host.

It is a true Guest (a ShellGuest) with `/session` and a home that are directories of the test. Processes that are
detached in it live on like in a machine, so what is tested is the process manager and not a provider.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Stream
from hiveyard.machines.shared.attached import attached
from hiveyard.machines.shared.shell import ShellGuest

_KEPT = ("bin", "etc", "lib", "lib64", "opt", "root", "sbin", "srv", "usr", "var")
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/home/agent", "USER": "agent", "LANG": "C.UTF-8"}


class Booth:
    """An Exec on a directory: `session` is its /session."""

    def __init__(self, root: Path) -> None:
        self.session = root / "shared"
        self.home = root / "home"
        self.session.mkdir(exist_ok=True)
        self.home.mkdir(exist_ok=True)
        binds = [word for name in _KEPT if Path("/", name).exists() for word in ("--ro-bind", f"/{name}", f"/{name}")]
        self._bwrap = (
            *("bwrap", *binds, "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
            *("--bind", str(self.session), "/session", "--bind", str(self.home), "/home/agent"),
        )

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        words = [word.encode("utf-8", "surrogateescape") for word in (*self._bwrap, "--", *argv)]
        async with attached(words, _ENV) as stream:
            yield stream

    def guest(self) -> ShellGuest:
        return ShellGuest(self, Capabilities())
