"""Serve HTTP/1.1 to untrusted clients on a unix socket: uvicorn's protocol, with limits of time, size and number.

uvicorn's own `Server` installs signal handlers, needs a tenth of a second to stop, and limits neither the time of a
request's head nor the number of idle connections. So this module has its own listener for uvicorn's protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from hiveyard.core.errors import SocketPathTooLong
from hiveyard.door.quota import Quota
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.names import new_id

_LONGEST_PATH = 100  # of 108 bytes in Linux, 104 in BSD and macOS
_FLUSH_SECONDS = 5.0
_AT_ONCE = 8  # asyncio accepts this many at once, before any of them can be refused
_WAITING = 128


@asynccontextmanager
async def listening(app: ASGIApp, path: Path, settings: DoorSettings, quota: Quota) -> AsyncIterator[None]:
    """Serve `app` at the socket `path` until the block ends. A file at `path` is replaced at once. Each connection
    takes one of `quota`.

    Every user may connect to the socket; its directory can be entered but not read. The directories above it, and the
    mounts of a guest, decide which users reach it. An app that returns before the end of its answer closes the
    connection. At the end, open requests are cut, and their handlers are awaited.
    Raises SocketPathTooLong, or the system's OSError.
    """
    state = ServerState()
    config = _config(app, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o711)
    with _bound(path) as listener:
        # asyncio directly: anyio cannot serve a protocol. `start_serving` is called apart: cancelled inside of
        # `create_server`, it would leave the descriptor registered in the loop, and the next file with that number
        # would get no events.
        server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(config, state, settings, quota), sock=listener, backlog=_AT_ONCE, start_serving=False
        )
        try:
            await server.start_serving()
            listener.listen(_WAITING)
            yield
        finally:
            server.close()
            with anyio.CancelScope(shield=True):
                await _end(state)


def _config(app: ASGIApp, settings: DoorSettings) -> Config:
    config = Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=settings.header_kib << 10,
    )
    config.load()
    return config


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """Create a listening socket at `path` atomically. Remove it at the end, unless it was replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = path.with_name(f".{path.name}.{new_id()}")
    try:
        _bind(listener, fresh)
        fresh.chmod(0o666)
        inode = fresh.stat().st_ino
        fresh.replace(path)
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_ino == inode:
                    path.unlink()
    finally:
        listener.close()
        fresh.unlink(missing_ok=True)


def _bind(listener: socket.socket, path: Path) -> None:
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        listener.bind(str(path))
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A long path has a short name while its directory is open.
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    except OSError as error:
        raise SocketPathTooLong(
            f"{path} is {len(os.fsencode(path))} bytes long; the limit for a socket's path is {_LONGEST_PATH}",
            hint="set HIVEYARD_HOME to a shorter directory",
        ) from error
    finally:
        os.close(directory)


async def _end(state: ServerState) -> None:
    """Close the open connections and wait for the handlers, which still record usage."""
    for connection in list(state.connections):
        connection.transport.abort()
    with anyio.move_on_after(10):
        while state.tasks:
            await asyncio.wait(state.tasks)
    for task in list(state.tasks):
        task.cancel()


class _Connection(H11Protocol):
    """A connection. It is closed if a request's head takes too long, is invalid, or if there are too many
    connections."""

    def __init__(self, config: Config, state: ServerState, settings: DoorSettings, quota: Quota) -> None:
        super().__init__(config, state, {})
        self._quota = quota
        self.logger = _quiet()
        self.access_log = False
        self.app = self._serve
        self._inner: ASGIApp = config.loaded_app
        self._settings = settings
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self._settings.connections or not self._quota.take():
            transport.abort()
            return
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # Invalid data during an answer: no error can be answered any more.
            self.transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        if self.transport is not None:
            self._quota.release()
            super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch()

    def _watch(self) -> None:
        """Start the timeout for an incomplete head; stop it once there is a request to answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(self._settings.head_seconds, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = self.cycle  # the next request may replace it before this one's app returns
        await self._inner(scope, receive, _closing(send) if _ambiguous(scope) else send)
        if not cycle.response_complete:
            # The answer was cut: send what is buffered, but not the end that HTTP requires.
            self.transport.close()
            self.loop.call_later(_FLUSH_SECONDS, self.transport.abort)


def _ambiguous(scope: Scope) -> bool:
    """Whether a request has two lengths, so that another server could find a second request in its body."""
    names = {name for name, _ in scope["headers"]}
    return {b"content-length", b"transfer-encoding"} <= names


def _closing(send: Send) -> Send:
    """Add `connection: close` to the answer (RFC 9112, 6.1); h11 then closes the connection."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await send(message)

    return closing


def _quiet() -> logging.Logger:
    """Return a silent logger: uvicorn logs each invalid request, and a guest could fill the log."""
    logger = logging.getLogger("hiveyard.door.http")
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    return logger
