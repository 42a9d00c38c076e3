"""Run a program in a guest as a child process, for providers that enter a machine with a program on the host.

The pipes are plain file descriptors, so that closing them always works: a child of the program that keeps its outputs
open keeps nothing open here.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
from anyio.abc import Process

from hiveyard.kit.process import signal_group

_PIECE = 256 << 10
# Seconds. When its pipes are closed, a program usually ends by itself: its stdin ends, and it cannot write.
_GRACE = 0.5


class AttachedStream:
    """The Stream of a child. `wait` returns the child's exit code. The provider checks whether the machine has died."""

    def __init__(self, process: Process, stdin: int, stdout: int, stderr: int) -> None:
        self._process = process
        self._stdin = _Pipe(stdin)
        self._stdout = _Pipe(stdout)
        self._stderr = _Pipe(stderr)

    @property
    def ended(self) -> bool:
        """Whether the child is known to have ended."""
        return self._process.returncode is not None

    async def send(self, data: bytes) -> None:
        await self._stdin.write(data)

    async def send_eof(self) -> None:
        self._stdin.close()

    async def receive(self) -> bytes:
        return await self._stdout.read()

    async def receive_error(self) -> bytes:
        return await self._stderr.read()

    async def wait(self) -> int:
        status = await self._process.wait()
        return 128 - status if status < 0 else status

    def close(self) -> None:
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()


@asynccontextmanager
async def attached(argv: Sequence[bytes], env: Mapping[str, str]) -> AsyncIterator[AttachedStream]:
    """Run a program in a new session, with `env` as its whole environment. At the end of the block its pipes are
    closed. If it does not exit soon after, its process group is killed."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        stdin, to_child = _pipe(theirs, ours, inward=True)
        from_child, stdout = _pipe(ours, theirs, inward=False)
        errors, stderr = _pipe(ours, theirs, inward=False)
        process = await anyio.open_process(
            list(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd="/", start_new_session=True
        )
        theirs.close()
        ours.pop_all()
        stream = AttachedStream(process, to_child, from_child, errors)
        try:
            yield stream
        finally:
            stream.close()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(_GRACE):
                    await process.wait()
                if process.returncode is None:
                    signal_group(process.pid, signal.SIGKILL)
                    await process.wait()


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack, *, inward: bool) -> tuple[int, int]:
    """Create a pipe whose end in this process does not block. Each stack closes one end."""
    read, write = os.pipe()
    readers.callback(os.close, read)
    writers.callback(os.close, write)
    os.set_blocking(write if inward else read, False)
    return read, write


class _Pipe:
    """This process's end of a pipe. After `close`, reading returns the end and writing discards."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def read(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        while self._fd >= 0:
            try:
                return os.read(self._fd, _PIECE)
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(self._fd)
        return b""

    async def write(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        left = memoryview(data)
        while left and self._fd >= 0:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_writable(self._fd)
            except BrokenPipeError:
                self.close()  # the program does not read its input; its exit code shows whether that is an error

    def close(self) -> None:
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
