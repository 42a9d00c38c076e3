"""Serve the application on a unix socket that only its owner can open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from hiveyard.core.errors import DaemonRunning, SocketPathTooLong

# sockaddr_un.sun_path, unix(7): 108 bytes with the ending NUL on Linux, 104 on macOS.
PATH_LIMIT = 103


def bind(path: Path) -> socket.socket:
    """Return a listening socket at `path` with mode 0600. It replaces a stale one.

    Raises SocketPathTooLong, and DaemonRunning when another daemon answers there."""
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise SocketPathTooLong(
            f"the socket's path has {len(os.fsencode(path))} bytes, at most {PATH_LIMIT} are possible: {path}",
            hint="set HIVEYARD_HOME to a shorter directory",
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _answers(path):
        raise DaemonRunning(f"another daemon answers on {path}", hint="hv stop-daemon")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


class Server(uvicorn.Server):
    """A server that leaves signals to the daemon: it runs several servers, and one signal ends all of them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server for the daemon's event loop: no signal handlers, no access log, and open event streams do not
    delay its end."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, ws="none", http="h11"
    )
    return Server(config)
