"""Ports of this host that lead into machines: choose, reserve and hold them beside all other programs.

A port is held by listening on it. All daemons of a user choose ports under one lock and record the owner of each port
in a shared directory, so that each can name the owner of a port that is taken. Records of a daemon that has ended are
ignored.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from hiveyard.core.errors import BadInput, NoFreePort, OrchestrationError, PortTaken
from hiveyard.kit.files import locked, write_atomic
from hiveyard.kit.text import one_line

_LISTEN = "0A"
_BACKLOG = 128
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Owner(NamedTuple):
    """The owner of a port: a session's id and its name."""

    session: str
    name: str


class ReservedPort(NamedTuple):
    """A port that is reserved for as long as its listening socket is open."""

    port: int
    socket: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    session: str
    name: str
    pid: int
    started: str

    @property
    def counts(self) -> bool:
        return bool(self.started) and _started(self.pid) == self.started


class HostPorts:
    """The host's ports. `directory` is shared by all daemons of this user. It is created if needed, and only the user
    may be able to write to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def reserve(
        self,
        owner: Owner,
        *,
        wanted: int | None = None,
        preferred: Iterable[int] = (),
        among: Iterable[int] = (0,),
        avoid: Collection[int] = (),
    ) -> ReservedPort:
        """Listen on a port of the loopback.

        With `wanted` only that port is tried. Otherwise the first free port of `preferred` is used, then of `among`,
        with those in `avoid` last; 0 is any port. Raises PortTaken, which names the owner, NoFreePort, BadInput."""
        if wanted is not None and not 1 <= wanted <= 65535:
            raise BadInput(f"{wanted} is not a port: use 1 to 65535")
        others = [*preferred, *sorted(among, key=lambda port: port in avoid)]
        return await anyio.to_thread.run_sync(self._reserve, owner, wanted, others)

    async def release(self, held: ReservedPort) -> None:
        """Release a port. Safe to repeat."""
        held.socket.close()
        await anyio.to_thread.run_sync(self._forget, held.port)

    def _reserve(self, owner: Owner, wanted: int | None, others: list[int]) -> ReservedPort:
        self._prepare()
        with locked(self._directory / "lock"):
            if wanted is not None:
                return self._hold(owner, wanted)
            for port in others:
                with contextlib.suppress(PortTaken, BadInput):
                    return self._hold(owner, port)
        raise NoFreePort(
            f"none of the ports {min(others)} to {max(others)} is free"
            if others
            else "there is no port to choose from",
            hint="set first and last in section [ports] of the settings, or name a port",
        )

    def _hold(self, owner: Owner, port: int) -> ReservedPort:
        try:
            listener = _listening(port)
        except PermissionError:
            raise BadInput(f"only root may use port {port}", hint="use a port above 1023") from None
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OrchestrationError(f"cannot listen on port {port}: {error.strerror}") from error
            raise PortTaken(
                f"port {port} is taken by {self._holder(port)}", hint="name another port, or none to get a free port"
            ) from None
        number = listener.getsockname()[1]
        claim = _Claim(session=owner.session, name=owner.name, pid=os.getpid(), started=_started(os.getpid()))
        write_atomic(self._directory / str(number), json.dumps(asdict(claim)).encode(), mode=0o600, durable=False)
        return ReservedPort(number, listener)

    def _forget(self, port: int) -> None:
        self._prepare()
        with locked(self._directory / "lock"):
            claim = self._claim(port)
            if claim is not None and claim.pid == os.getpid():
                (self._directory / str(port)).unlink(missing_ok=True)

    def _holder(self, port: int) -> str:
        claim = self._claim(port)
        if claim is not None and claim.counts:
            return f"session {one_line(claim.name, 80)} ({one_line(claim.session, 40)})"
        return _program(port)

    def _claim(self, port: int) -> _Claim | None:
        try:
            claim = json.loads((self._directory / str(port)).read_bytes())
            return _Claim(
                session=str(claim["session"]),
                name=str(claim["name"]),
                pid=int(claim["pid"]),
                started=str(claim["started"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _prepare(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        seen = self._directory.lstat()
        # Its parent may be a directory in which everybody can create entries.
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
            raise OrchestrationError(
                f"{self._directory} must be a directory to which only this user can write",
                hint=f"ls -ld {self._directory}",
            )


def _listening(port: int) -> socket.socket:
    """Return a socket that listens on the loopback. No other program listens on the port at any address, so that
    connections to `localhost` reach this socket. Raises OSError."""
    if port:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
            with contextlib.suppress(_Absent):
                _bound(family, address, port).close()
    listener = _bound(socket.AF_INET, "127.0.0.1", port)
    try:
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Absent(OSError):
    """The error for a host that has no addresses of a family."""


def _bound(family: int, address: str, port: int) -> socket.socket:
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _Absent from error
    try:
        # Connections that ended a minute ago do not block the port; a program that listens does.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except OSError as error:
        bound.close()
        if error.errno in _NO_SUCH_FAMILY:
            raise _Absent from error
        raise
    return bound


def _program(port: int) -> str:
    """Return the program that listens on a port, as far as the kernel tells."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(port)}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(str(fd.readlink()) in inodes for fd in (entry / "fd").iterdir()):
                    name = one_line((entry / "comm").read_text(errors="replace"), 40)
                    return f"another program, {name} (pid {entry.name})"
    return "another program"


def _inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    found.add(words[9])
    return found


def _started(pid: int) -> str:
    """Return the start time of a process in the kernel's clock ticks; "" for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
