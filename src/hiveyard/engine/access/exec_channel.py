"""A command in a guest as two byte streams: stdin in, frames out.

A frame is a letter, the length of its content in four bytes, and the content: `o` is stdout, `e` stderr. The last frame
is `x` with the exit code in digits, or `!` with the error as JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import anyio

from hiveyard.core.commands import Command
from hiveyard.core.errors import HiveyardError
from hiveyard.core.ports import Guest, Stream
from hiveyard.kit.group import together

HEAD = struct.Struct(">cI")
_QUIET_SECONDS = 0.5  # a command that has ended may leave children that hold its outputs open for ever


async def run(
    guests: AbstractAsyncContextManager[Guest],
    command: Command,
    stdin: AsyncIterator[bytes],
    send: Callable[[bytes], Awaitable[None]],
) -> None:
    """Run a command and send its frames as they come; cancelling kills it. A HiveyardError becomes the last frame."""

    async def inward(stream: Stream) -> None:
        async for data in stdin:
            await stream.send(data)
        await stream.send_eof()

    async def outward(data: bytes, error: bool) -> None:
        await send(_frame(b"e" if error else b"o", data))

    try:
        async with guests as guest, guest.open(command) as stream, together() as group:
            group.start_soon(inward, stream)
            status = await outputs(stream, outward)
            group.cancel_scope.cancel()
        last = _frame(b"x", str(status).encode())
    except HiveyardError as error:
        failure = {"code": error.code, "message": error.message, "hint": error.hint}
        last = _frame(b"!", json.dumps(failure).encode())
    await send(last)


async def outputs(stream: Stream, send: Callable[[bytes, bool], Awaitable[None]]) -> int:
    """Pass on a program's output (`True` for stderr) until the program has ended and no more output arrives. Return
    its exit code. Raises the errors of `Stream.wait`."""
    last_output = [anyio.current_time()]
    busy = 0

    async def one(receive: Callable[[], Awaitable[bytes]], error: bool) -> None:
        nonlocal busy
        while data := await receive():
            busy += 1
            await send(data, error)
            busy -= 1
            last_output[0] = anyio.current_time()

    async with together() as group:
        async with together() as readers:
            readers.start_soon(one, stream.receive, False)
            readers.start_soon(one, stream.receive_error, True)
            status = await stream.wait()
            last_output[0] = anyio.current_time()
            group.start_soon(
                _cancel_when_quiet, lambda: busy > 0 or anyio.current_time() - last_output[0] < _QUIET_SECONDS, readers
            )
        group.cancel_scope.cancel()
    return status


async def _cancel_when_quiet(active: Callable[[], bool], readers: anyio.abc.TaskGroup) -> None:
    while active():  # noqa: ASYNC110 (the absence of output is not an event)
        await anyio.sleep(_QUIET_SECONDS / 5)
    readers.cancel_scope.cancel()


def _frame(letter: bytes, data: bytes) -> bytes:
    return HEAD.pack(letter, len(data)) + data
