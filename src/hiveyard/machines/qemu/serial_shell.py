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
from hiveyard.machines.qemu.launch import short
from hiveyard.machines.qemu.vm import Vm

_HEAD = struct.Struct(">cI")
_LONGEST = 1 << 20
_PIECE = 64 << 10
_HIGH = 1 << 20  # bytes of output that are held for who does not take them
_WINDOW = 256 << 10  # bytes of input on their way
_BEGINNING = 120.0  # seconds: what runs commands was ended, or its answer lost
_LETTING_GO = 2.0
_DYING = 2.0
_BROKEN = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


class SerialShell:
    """The port of one machine. `free`: it can run a command now. `patience`: seconds for a command to begin."""

    def __init__(self, name: str, vm: Vm, stream: anyio.abc.ByteStream, *, patience: float = _BEGINNING) -> None:
        self.name = name
        self.vm = vm
        self.patience = patience
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
    async def run(self, argv: Sequence[str]) -> AsyncIterator[Spoken]:
        """A program in the guest; only when `free`. Raises MachineLost, GuestDisconnected, CannotExecute."""
        self.free = False
        spoken = Spoken(self)
        words = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in argv)
        try:
            await self.put(b"C", words)
            yield spoken
        finally:
            with anyio.CancelScope(shield=True):
                self.free = await self._let_go(spoken)
                if not self.free:
                    await self.aclose()

    async def _let_go(self, spoken: Spoken) -> bool:
        """Whether the guest has let go of the program and is ready for the next."""
        try:
            with anyio.move_on_after(_LETTING_GO):
                await self.put(b"L", b"")
                await spoken.drained()
                return self._usable
        except ProviderError:
            pass  # whoever needs the guest next will find out
        return False

    async def put(self, kind: bytes, data: bytes) -> None:
        if not self._usable:
            raise await self.lost()
        # A frame that is cut off by a cancelling makes the rest unreadable.
        self._usable = False
        try:
            await self._stream.send(_HEAD.pack(kind, len(data)) + data)
        except _BROKEN as error:
            raise await self.lost() from error
        self._usable = True

    async def get(self) -> tuple[bytes, bytes]:
        """The next frame."""
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
        if size > _LONGEST:
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
        if await self.vm.gone(within=_DYING):
            return MachineLost(f"machine {self.name} is gone: its QEMU process ended", machine=self.name)
        return GuestDisconnected(f"the port of machine {self.name} broke", machine=self.name)


class Spoken:
    """One program; a Stream. Whoever waits for something reads frames for all."""

    def __init__(self, early: SerialShell) -> None:
        self._early = early
        self._held: dict[bytes, list[bytes]] = {b"O": [], b"E": []}
        self._open = {b"O", b"E"}
        self._size = 0
        self._under_way = 0
        self._status: int | None = None
        self._begun = False
        self._over = False
        self._letting_go = False
        self._ended_input = False
        self._lost: ProviderError | None = None
        self._reading = anyio.Lock()
        self._taken = anyio.Event()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            await self._until(lambda: self._under_way < _WINDOW)
            if self._deaf:
                return
            piece = data[start : start + _PIECE]
            self._under_way += len(piece)
            await self._put(piece)

    async def send_eof(self) -> None:
        if not self._ended_input and not self._deaf:
            self._ended_input = True
            await self._put(b"")

    async def receive(self) -> bytes:
        return await self._take(b"O")

    async def receive_error(self) -> bytes:
        return await self._take(b"E")

    async def wait(self) -> int:
        await self._until(lambda: self._status is not None)
        if self._status is None:
            raise self._lost or await self._early.lost()
        return self._status

    async def drained(self) -> None:
        """Wait until the guest is ready for the next program; what it still says is dropped."""
        self._letting_go = True
        self._forget()
        await self._until(lambda: False)
        if self._lost is not None:
            raise self._lost

    @property
    def _deaf(self) -> bool:
        return self._over or self._lost is not None

    async def _put(self, data: bytes) -> None:
        try:
            await self._early.put(b"I", data)
        except ProviderError as error:
            self._lost = error

    async def _take(self, kind: bytes) -> bytes:
        await self._until(lambda: bool(self._held[kind]) or kind not in self._open)
        data = b"".join(self._held[kind])
        self._held[kind].clear()
        self._size -= len(data)
        self._tell()
        return data

    async def _until(self, done: Callable[[], bool]) -> None:
        """Read frames until something is so, or there are no more."""
        while not done() and not self._deaf:
            async with self._reading:
                if done() or self._deaf:
                    return
                if self._size > _HIGH and not self._letting_go:
                    await self._taken.wait()
                    continue
                await self._read()

    async def _read(self) -> None:
        try:
            with anyio.fail_after(None if self._begun else self._early.patience):
                kind, data = await self._early.get()
            self._accept(kind, data)
        except ProviderError as error:
            self._lost = error
        except TimeoutError:
            name, patience = self._early.name, self._early.patience
            message = f"machine {name} did not begin a command within {patience:g}s"
            self._lost = GuestDisconnected(message, machine=name)

    def _accept(self, kind: bytes, data: bytes) -> None:
        if kind == b"R":
            # One from before our command is of a guest that has just started what runs commands.
            self._over = self._begun
        elif kind == b"S":
            self._begun = True
        elif kind == b"A" and len(data) == 4:
            self._under_way -= int.from_bytes(data)
        elif kind == b"X" and len(data) == 4:
            self._status = int.from_bytes(data) & 0xFF
        elif kind == b"N":
            self._begun = True
            name = self._early.name
            raise CannotExecute(f"machine {name} has no room for one more program", machine=name)
        elif kind in self._held:
            self._keep(kind, data)
        else:
            name = self._early.name
            raise GuestDisconnected(f"machine {name} sent a frame that makes no sense: {kind!r}", machine=name)

    def _keep(self, kind: bytes, data: bytes) -> None:
        if not data:
            self._open.discard(kind)
        elif not self._letting_go:
            self._held[kind].append(data)
            self._size += len(data)

    def _forget(self) -> None:
        for held in self._held.values():
            held.clear()
        self._size = 0
        self._tell()

    def _tell(self) -> None:
        # Wakes all who wait now, and nobody who comes later.
        self._taken.set()
        self._taken = anyio.Event()


async def reach(name: str, vm: Vm, socket: Path) -> SerialShell:
    """The port of a machine that was just made. Raises MachineLost."""
    try:
        with short(socket) as path:
            return SerialShell(name, vm, await anyio.connect_unix(path))
    except OSError as error:
        raise MachineLost(f"machine {name} ended before it was ready", machine=name) from error
