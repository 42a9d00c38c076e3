"""Talking with one program in a guest: feed it, keep the first part of what it says, know when it is over.

It knows nothing of scripts or of files; see shell.py for these.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from hiveyard.core.ports import Stream
from hiveyard.kit.group import together

CANNOT = 126  # the exit code of the RUN script when its program cannot be started; programs may have it as well

_PIECE = 1 << 20
_PREFACE_LIMIT = 64 << 10

# A program may end and leave children that hold its outputs open: what is on its way is waited for, they are not.
_SILENCE = 0.5
_AFTERMATH = 30.0


class Kept:
    """The first `limit` bytes of an output; `cut` tells that there were more."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.cut = False
        self._limit = limit

    def add(self, piece: bytes) -> None:
        room = self._limit - len(self.data)
        self.cut = self.cut or len(piece) > room
        if room > 0:
            self.data += piece[:room]


class Commanded(Kept):
    """The stderr of the RUN script: the line that says how the command started, then the command's own.

    `pid` is the command's; `failure` is "cwd" or "exec" when it did not start.
    """

    def __init__(self, token: str, limit: int) -> None:
        super().__init__(limit)
        self.pid: int | None = None
        self.failure = ""
        self._token = token.encode()
        self._preface: bytearray | None = bytearray()
        self._tail = b""

    def add(self, piece: bytes) -> None:
        if self._preface is not None:
            piece = self._begin(self._preface, piece)
        super().add(piece)
        self._watch_for_exec(piece)

    def unread(self) -> bytes:
        """What came instead of the first line."""
        return bytes(self._preface or b"")

    def _begin(self, preface: bytearray, piece: bytes) -> bytes:
        # A guest's bash may complain (of its locale, say) before it comes to our script.
        room = _PREFACE_LIMIT - len(preface)
        preface += piece[:room]
        start = preface.find(self._token + b" ")
        end = preface.find(b"\n", start)
        if start < 0 or end < 0:
            return b""
        word = preface[start + len(self._token) + 1 : end]
        if word.isdigit() and len(word) < 10:
            self.pid = int(word)
        elif word == b"cwd":
            self.failure = "cwd"
        self._preface = None
        return bytes(preface[end + 1 :]) + piece[room:]

    def _watch_for_exec(self, piece: bytes) -> None:
        trailer = b"\n" + self._token + b" exec\n"
        self._tail = (self._tail + piece)[-len(trailer) :]
        if self._tail == trailer:
            self.failure = "exec"
            if self.data.endswith(trailer):
                del self.data[-len(trailer) :]


async def converse(stream: Stream, data: bytes, out: Callable[[bytes], None], err: Callable[[bytes], None]) -> int:
    """Give `data` to a program, hand on what it says, and return its exit code. Raises MachineLost, CannotExecute."""
    readers = [_Reader(stream.receive, out), _Reader(stream.receive_error, err)]
    async with together() as group:
        group.start_soon(_feed, stream, data, name="feed a command in the guest")
        for reader in readers:
            group.start_soon(reader.read, name="read a command in the guest")
        status = await stream.wait()
        over = anyio.current_time()
        with anyio.move_on_after(_AFTERMATH):
            for reader in readers:
                await reader.finish(over)
        group.cancel_scope.cancel()
    return status


class Opened:
    """The Stream of a command: that of the RUN script without what the script itself says.

    `over` tells that the exit code is known. `check` raises CannotExecute for a command that was never started."""

    def __init__(self, stream: Stream, said: Commanded, check: Callable[[int], None]) -> None:
        self.over = False
        self.send = stream.send
        self.send_eof = stream.send_eof
        self.receive = stream.receive
        self._stream = stream
        self._said = said
        self._check = check
        self._ended = False
        self._turn = anyio.Lock()

    async def started(self) -> None:
        """Return when the command runs."""
        while self._said.pid is None and not self._said.failure and not self._ended:
            await self._hear()
        if self._said.pid is None:
            await self.wait()

    async def receive_error(self) -> bytes:
        async with self._turn:
            while not self._said.data and not self._ended:
                await self._hear()
            piece = bytes(self._said.data)
            self._said.data.clear()
            return piece

    async def wait(self) -> int:
        status = await self._stream.wait()
        self.over = True
        if status == CANNOT:
            # What tells that it was never started is the last on its stderr.
            with anyio.move_on_after(_SILENCE):
                async with self._turn:
                    while not self._said.failure and not self._ended:
                        await self._hear()
        self._check(status)
        return status

    async def _hear(self) -> None:
        piece = await self._stream.receive_error()
        self._ended = not piece
        self._said.add(piece)


class _Reader:
    def __init__(self, receive: Callable[[], Awaitable[bytes]], sink: Callable[[bytes], None]) -> None:
        self._receive = receive
        self._sink = sink
        self._last = -math.inf
        self._ended = anyio.Event()

    async def read(self) -> None:
        while piece := await self._receive():
            self._last = anyio.current_time()
            self._sink(piece)
        self._ended.set()

    async def finish(self, over: float) -> None:
        """Return at the end of the output, or after a silence; the program itself ended at `over`."""
        while not self._ended.is_set():
            patience = max(over, self._last) + _SILENCE - anyio.current_time()
            if patience <= 0:
                return
            with anyio.move_on_after(patience):
                await self._ended.wait()


async def _feed(stream: Stream, data: bytes) -> None:
    for start in range(0, len(data), _PIECE):
        await stream.send(data[start : start + _PIECE])
    await stream.send_eof()
