"""A program in a guest as a child process of ours: for providers whose way in is a program on the host.

The pipes are plain file descriptors, so that letting go of them is certain: a child of the program that keeps its
outputs open keeps nothing open here.
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
# A program that its host has let go of ends by itself, when its stdin ends or nobody takes its output.
_GRACE = 0.5


class AttachedStream:
    """The Stream of a child. `wait` gives the child's own exit code; whether the machine died under it is for the
    provider to find out."""

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

    def let_go(self) -> None:
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()


@asynccontextmanager
async def attached(argv: Sequence[bytes], env: Mapping[str, str]) -> AsyncIterator[AttachedStream]:
    """Run a program in a session of its own, with nothing but `env`. When the block is left, its pipes are closed;
    if it does not end of that in a moment, its process group is killed."""
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as childs:
        stdin, to_child = _pipe(childs, ours, inward=True)
        from_child, stdout = _pipe(ours, childs, inward=False)
        errors, stderr = _pipe(ours, childs, inward=False)
        process = await anyio.open_process(
            list(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd="/", start_new_session=True
        )
        childs.close()
        ours.pop_all()
        stream = AttachedStream(process, to_child, from_child, errors)
        try:
            yield stream
        finally:
            stream.let_go()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(_GRACE):
                    await process.wait()
                if process.returncode is None:
                    signal_group(process.pid, signal.SIGKILL)
                    await process.wait()


def _pipe(readers: contextlib.ExitStack, writers: contextlib.ExitStack, *, inward: bool) -> tuple[int, int]:
    """A pipe of which our end does not block; each end is closed by its stack."""
    read, write = os.pipe()
    readers.callback(os.close, read)
    writers.callback(os.close, write)
    os.set_blocking(write if inward else read, False)
    return read, write


class _Pipe:
    """Our end of a pipe; closed, it reads as ended and writes into nothing."""

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
                self.close()  # the program does not want its input: its own exit code tells what that means

    def close(self) -> None:
        if self._fd >= 0:
            anyio.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1
