"""Connect to the raw input and outputs of a process: an HTTP connection to the engine that was upgraded.

aiodocker can open one, too, but cannot close the input alone, which ends a program's stdin.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
from aiodocker.exceptions import DockerError

_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
_PIECE = 256 << 10
_HEAD_LIMIT = 64 << 10
_FRAME = struct.Struct(">BxxxL")
_STDERR = 2
_HELD_LIMIT = 1 << 20  # bytes buffered of one output while the other is read; then reading waits


class Hijacked:
    """The stdin, stdout and stderr of a process. `over` is set at the end of the output, whatever the reason."""

    def __init__(self, socket: anyio.abc.SocketStream, early: bytes) -> None:
        self.over = anyio.Event()
        self._socket = socket
        self._raw = bytearray(early)
        self._held: dict[bool, deque[bytes]] = {False: deque(), True: deque()}
        self._size = {False: 0, True: 0}  # bytes buffered of each
        self._reading = False
        self._changed = anyio.Event()
        self._left = 0  # bytes of the current frame that have not arrived
        self._is_error = False

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send(data)
        except _GONE:
            return

    async def send_eof(self) -> None:
        try:
            await self._socket.send_eof()
        except _GONE:
            return

    async def receive(self, *, error: bool) -> bytes:
        """Return the next piece of stdout or stderr, b"" at the end. If two callers wait, one reads for both."""
        while not self._held[error] and not self.over.is_set():
            if self._reading or self._size[not error] >= _HELD_LIMIT:
                await self._changed.wait()
            else:
                await self._read()
        if not self._held[error]:
            return b""
        self._notify()
        piece = self._held[error].popleft()
        self._size[error] -= len(piece)
        return piece

    async def _read(self) -> None:
        self._reading = True
        try:
            is_error, piece = await self._next()
            if piece:
                self._held[is_error].append(piece)
                self._size[is_error] += len(piece)
        finally:
            self._reading = False
            self._notify()

    def _notify(self) -> None:
        # This wakes the tasks that wait now, and none that wait later.
        self._changed.set()
        self._changed = anyio.Event()

    async def _next(self) -> tuple[bool, bytes]:
        """Return a piece and whether it is of stderr. It is empty at the end, and when more has to be read first."""
        if not self._left and len(self._raw) >= _FRAME.size:
            number, self._left = _FRAME.unpack_from(self._raw)
            self._is_error = number == _STDERR
            del self._raw[: _FRAME.size]
        if self._left and self._raw:
            piece = bytes(self._raw[: self._left])
            del self._raw[: len(piece)]
            self._left -= len(piece)
            return self._is_error, piece
        try:
            self._raw += await self._socket.receive(_PIECE)
        except _GONE:
            self.over.set()
        return False, b""


@asynccontextmanager
async def hijacked(socket: Path, path: str, body: dict[str, object]) -> AsyncIterator[Hijacked]:
    """POST to the engine and take over the connection. Raises DockerError with the engine's message, OSError."""
    async with await anyio.connect_unix(socket) as stream:
        payload = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        try:
            await stream.send(head.encode() + payload)
            status, rest = await _answer(stream)
            if status not in (101, 200):
                raise DockerError(status, await _error_message(stream, rest))
        except (anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise ConnectionError("the engine closed the connection") from error
        yield Hijacked(stream, rest)


async def _answer(stream: anyio.abc.ByteReceiveStream) -> tuple[int, bytes]:
    """Return the status of the answer, and the bytes after its head."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > _HEAD_LIMIT:
            raise ConnectionError("the engine's answer has no end of its head")
        data += await stream.receive(_PIECE)
    words = data.split(b"\r\n", 1)[0].split()
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"the engine's answer is not HTTP: {bytes(data[:80])!r}")
    return int(words[1]), bytes(data[end + 4 :])


async def _error_message(stream: anyio.abc.ByteReceiveStream, rest: bytes) -> str:
    """Return the message in an error's JSON body, with any framing."""
    data = bytearray(rest)
    with anyio.move_on_after(5):
        while b"}" not in data and len(data) < _HEAD_LIMIT:
            try:
                data += await stream.receive(_PIECE)
            except anyio.EndOfStream:
                break
    text = data[max(0, data.find(b"{")) : data.rfind(b"}") + 1].decode("utf-8", "replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text or "no reason given"
