"""The first commands of a machine, over a serial port, to a shell that was frozen with the template.

It runs one command at a time, until the ssh connection is needed (ssh.py), which takes an emulated guest half a second
to make. inside/etc/hiveyard/commands.pl documents the frames. They come from the guest: their size is bounded, and a
malformed frame ends the channel.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from hiveyard.core.errors import CannotExecute, GuestDisconnected, MachineLost, ProviderError
from hiveyard.machines.qemu.launch import short_path
from hiveyard.machines.qemu.vm import Vm

_HEAD = struct.Struct(">cI")
_FRAME_LIMIT = 1 << 20
_PIECE = 64 << 10
_BUFFER_LIMIT = 1 << 20  # bytes of output that are buffered until they are received
_WINDOW = 256 << 10  # bytes of input that are sent before the guest confirms them
_START_TIMEOUT = 120.0  # seconds; commands.pl may have been killed, or its answer lost
_RELEASE_TIMEOUT = 2.0
_EXIT_TIMEOUT = 2.0  # seconds between the end of QEMU's sockets and of its process
_BROKEN = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SerialShell:
    """The serial port of one machine. It can run a command while it is `free`. A command must start within
    `start_timeout` seconds."""

    def __init__(
        self, name: str, vm: Vm, stream: anyio.abc.ByteStream, *, start_timeout: float = _START_TIMEOUT
    ) -> None:
        self.name = name
        self.vm = vm
        self.start_timeout = start_timeout
        self.free = True
        self._stream = stream
        self._buffer = bytearray()
        self._usable = True

    @property
    def usable(self) -> bool:
        return self._usable

    async def aclose(self) -> None:
        self._usable = self.free = False
        await self._stream.aclose()

    @asynccontextmanager
    async def run(self, argv: Sequence[str]) -> AsyncIterator[SerialCommand]:
        """Run a program in the guest; only while `free`. Raises MachineLost, GuestDisconnected, CannotExecute."""
        self.free = False
        command = SerialCommand(self)
        words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in argv)
        try:
            await self.send_frame(b"C", words)
            yield command
        finally:
            with anyio.CancelScope(shield=True):
                self.free = await self._release(command)
                if not self.free:
                    await self.aclose()

    async def _release(self, command: SerialCommand) -> bool:
        """Ask the guest to release the program. Return whether it is ready for the next one."""
        try:
            with anyio.move_on_after(_RELEASE_TIMEOUT):
                await self.send_frame(b"L", b"")
                await command.drained()
                return self._usable
        except ProviderError:
            pass  # the next command reports the problem
        return False

    async def send_frame(self, kind: bytes, data: bytes) -> None:
        if not self._usable:
            raise await self.lost()
        # After a frame that a cancellation cut off, the guest cannot read anything that follows.
        self._usable = False
        try:
            await self._stream.send(_HEAD.pack(kind, len(data)) + data)
        except _BROKEN as error:
            raise await self.lost() from error
        self._usable = True

    async def receive_frame(self) -> tuple[bytes, bytes]:
        """Return the next frame: its kind and its data."""
        while (frame := self._frame()) is None:
            try:
                self._buffer += await self._stream.receive(_PIECE)
            except _BROKEN as error:
                raise await self.lost() from error
        return frame

    def _frame(self) -> tuple[bytes, bytes] | None:
        if len(self._buffer) < _HEAD.size:
            return None
        kind, size = _HEAD.unpack_from(self._buffer)
        if size > _FRAME_LIMIT:
            self._usable = False
            raise GuestDisconnected(f"machine {self.name} sent a frame of {size} bytes", machine=self.name)
        end = _HEAD.size + size
        if len(self._buffer) < end:
            return None
        data = bytes(self._buffer[_HEAD.size : end])
        del self._buffer[:end]
        return kind, data

    async def lost(self) -> MachineLost:
        self._usable = False
        if await self.vm.wait_ended(within=_EXIT_TIMEOUT):
            return MachineLost(f"machine {self.name} is gone: its QEMU process has ended", machine=self.name)
        return GuestDisconnected(f"the serial port of machine {self.name} broke", machine=self.name)


class SerialCommand:
    """A program that runs over the serial port; a Stream. A method that waits reads frames for all methods."""

    def __init__(self, shell: SerialShell) -> None:
        self._shell = shell
        self._buffered: dict[bytes, list[bytes]] = {b"O": [], b"E": []}
        self._open = {b"O", b"E"}
        self._size = 0
        self._in_flight = 0
        self._status: int | None = None
        self._started = False
        self._finished = False
        self._draining = False
        self._input_closed = False
        self._lost: ProviderError | None = None
        self._reading = anyio.Lock()
        self._taken = anyio.Event()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            await self._read_until(lambda: self._in_flight < _WINDOW)
            if self._closed:
                return
            piece = data[start : start + _PIECE]
            self._in_flight += len(piece)
            await self._send_input(piece)

    async def send_eof(self) -> None:
        if not self._input_closed and not self._closed:
            self._input_closed = True
            await self._send_input(b"")

    async def receive(self) -> bytes:
        return await self._take(b"O")

    async def receive_error(self) -> bytes:
        return await self._take(b"E")

    async def wait(self) -> int:
        await self._read_until(lambda: self._status is not None)
        if self._status is None:
            raise self._lost or await self._shell.lost()
        return self._status

    async def drained(self) -> None:
        """Wait until the guest is ready for the next program; the rest of the output is dropped."""
        self._draining = True
        self._drop_output()
        await self._read_until(lambda: False)
        if self._lost is not None:
            raise self._lost

    @property
    def _closed(self) -> bool:
        return self._finished or self._lost is not None

    async def _send_input(self, data: bytes) -> None:
        try:
            await self._shell.send_frame(b"I", data)
        except ProviderError as error:
            self._lost = error

    async def _take(self, kind: bytes) -> bytes:
        await self._read_until(lambda: bool(self._buffered[kind]) or kind not in self._open)
        data = b"".join(self._buffered[kind])
        self._buffered[kind].clear()
        self._size -= len(data)
        self._notify()
        return data

    async def _read_until(self, done: Callable[[], bool]) -> None:
        """Read frames until `done` returns True or no more can come."""
        while not done() and not self._closed:
            async with self._reading:
                if done() or self._closed:
                    return
                if self._size > _BUFFER_LIMIT and not self._draining:
                    await self._taken.wait()
                    continue
                await self._read()

    async def _read(self) -> None:
        try:
            with anyio.fail_after(None if self._started else self._shell.start_timeout):
                kind, data = await self._shell.receive_frame()
            self._accept(kind, data)
        except ProviderError as error:
            self._lost = error
        except TimeoutError:
            name, timeout = self._shell.name, self._shell.start_timeout
            message = f"machine {name} did not start a command within {timeout:g}s"
            self._lost = GuestDisconnected(message, machine=name)

    def _accept(self, kind: bytes, data: bytes) -> None:
        if kind == b"R":
            # Before the command has started, it only means that commands.pl was started again.
            self._finished = self._started
        elif kind == b"S":
            self._started = True
        elif kind == b"A" and len(data) == 4:
            self._in_flight -= int.from_bytes(data)
        elif kind == b"X" and len(data) == 4:
            self._status = int.from_bytes(data) & 0xFF
        elif kind == b"N":
            self._started = True
            name = self._shell.name
            raise CannotExecute(f"machine {name} cannot start one more program", machine=name)
        elif kind in self._buffered:
            self._buffer(kind, data)
        else:
            name = self._shell.name
            raise GuestDisconnected(f"machine {name} sent a frame of unknown kind: {kind!r}", machine=name)

    def _buffer(self, kind: bytes, data: bytes) -> None:
        if not data:
            self._open.discard(kind)
        elif not self._draining:
            self._buffered[kind].append(data)
            self._size += len(data)

    def _drop_output(self) -> None:
        for pieces in self._buffered.values():
            pieces.clear()
        self._size = 0
        self._notify()

    def _notify(self) -> None:
        # Wakes those that wait now, and nobody that waits later.
        self._taken.set()
        self._taken = anyio.Event()


async def open_shell(name: str, vm: Vm, socket: Path) -> SerialShell:
    """Connect to the serial port of a machine that was just started. Raises MachineLost."""
    try:
        with short_path(socket) as path:
            return SerialShell(name, vm, await anyio.connect_unix(path))
    except OSError as error:
        raise MachineLost(f"machine {name} ended before it was ready", machine=name) from error
