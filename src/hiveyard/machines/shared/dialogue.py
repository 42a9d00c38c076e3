"""Exchange data with one program in a guest: write its stdin, keep the first part of its output, detect its end.

Nothing here knows scripts or files; see shell.py for these.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio

from hiveyard.core.ports import Stream
from hiveyard.kit.group import together

CANNOT = 126  # the exit code of the RUN script when its program cannot be started; a program may exit with it, too

_PIECE = 1 << 20
_PREFACE_LIMIT = 64 << 10

# Seconds. A program may exit and leave children that keep its outputs open. Output that is on its way is waited for:
# until none has come for _SILENCE, and for _DRAIN_TIMEOUT at most.
_SILENCE = 0.5
_DRAIN_TIMEOUT = 30.0


class BoundedOutput:
    """The first `limit` bytes of an output. `truncated` is set when there were more."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._limit = limit

    def add(self, piece: bytes) -> None:
        room = self._limit - len(self.data)
        self.truncated = self.truncated or len(piece) > room
        if room > 0:
            self.data += piece[:room]


class CommandStderr(BoundedOutput):
    """The stderr of the RUN script: a line about the start of the command, then the stderr of the command.

    `pid` is the command's. `failure` is "cwd" or "exec" if the command did not start.
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
        """Return what was received instead of the first line."""
        return bytes(self._preface or b"")

    def _begin(self, preface: bytearray, piece: bytes) -> bytes:
        # A guest's bash may print warnings (about its locale, for example) before it runs the script.
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


async def communicate(stream: Stream, data: bytes, out: Callable[[bytes], None], err: Callable[[bytes], None]) -> int:
    """Write `data` to a program, pass on its output, and return its exit code. Raises MachineLost, CannotExecute."""
    readers = [_Reader(stream.receive, out), _Reader(stream.receive_error, err)]
    async with together() as group:
        group.start_soon(_feed, stream, data, name="feed a command in the guest")
        for reader in readers:
            group.start_soon(reader.read, name="read a command in the guest")
        status = await stream.wait()
        over = anyio.current_time()
        with anyio.move_on_after(_DRAIN_TIMEOUT):
            for reader in readers:
                await reader.finish(over)
        group.cancel_scope.cancel()
    return status


class CommandStream:
    """The Stream of a command: that of the RUN script without the script's own output.

    `over` is set when the exit code is known. `check` raises CannotExecute for a command that was never started."""

    def __init__(self, stream: Stream, stderr: CommandStderr, check: Callable[[int], None]) -> None:
        self.over = False
        self.send = stream.send
        self.send_eof = stream.send_eof
        self.receive = stream.receive
        self._stream = stream
        self._stderr = stderr
        self._check = check
        self._ended = False
        self._turn = anyio.Lock()

    async def started(self) -> None:
        """Wait until the command runs."""
        while self._stderr.pid is None and not self._stderr.failure and not self._ended:
            await self._read_error()
        if self._stderr.pid is None:
            await self.wait()

    async def receive_error(self) -> bytes:
        async with self._turn:
            while not self._stderr.data and not self._ended:
                await self._read_error()
            piece = bytes(self._stderr.data)
            self._stderr.data.clear()
            return piece

    async def wait(self) -> int:
        status = await self._stream.wait()
        self.over = True
        if status == CANNOT:
            # If it was never started, the end of its stderr reports that.
            with anyio.move_on_after(_SILENCE):
                async with self._turn:
                    while not self._stderr.failure and not self._ended:
                        await self._read_error()
        self._check(status)
        return status

    async def _read_error(self) -> None:
        piece = await self._stream.receive_error()
        self._ended = not piece
        self._stderr.add(piece)


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
        """Wait for the end of the output, or until none has come for a while. The program ended at `over`."""
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
