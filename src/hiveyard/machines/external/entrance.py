"""Run programs in a machine of an external provider: the protocol's `exec` as the Exec of a ShellGuest."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio

from hiveyard.core.errors import (
    CannotExecute,
    GuestDisconnected,
    HiveyardError,
    MachineLost,
    ProviderError,
)
from hiveyard.core.machines import Machine, MachineStatus
from hiveyard.core.ports import Stream
from hiveyard.machines.external import wire
from hiveyard.machines.external.program import Program
from hiveyard.machines.external.talk import Talk

_LEAVING = 10.0
_STATUSES = range(256)


class Entrance:
    """Starts programs in one machine. `look` returns the machine's state; `timeout` limits the start of a program."""

    def __init__(self, machine: str, program: Program, look: Callable[[], Awaitable[Machine]], timeout: float) -> None:
        self._machine = machine
        self._program = program
        self._look = look
        self._timeout = timeout

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        words = [word.encode("utf-8", "surrogateescape") for word in argv]
        execution = await self._connect()
        try:
            try:
                with anyio.fail_after(self._timeout):
                    await execution.start(self._machine, words)
            except TimeoutError:
                raise self.lost(f"it started no program in {self._timeout:g}s") from None
            yield execution
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVING):
                await execution.close()

    async def _connect(self) -> _Execution:
        try:
            return _Execution(await self._program.talk(), self)
        except ProviderError as error:
            raise self.lost(error.message, error.hint) from error

    async def broken(self, error: ProviderError) -> MachineLost:
        """Return the error for a program that has ended: the machine may be alive, and the next program finds it."""
        try:
            machine = await self._look()
        except ProviderError as worse:
            return self.lost(worse.message, worse.hint)
        if machine.status is not MachineStatus.READY:
            return self.lost(machine.reason or f"it is {machine.status}")
        return GuestDisconnected(error.message, hint=error.hint, machine=self._machine)

    def failed(self, said: wire.Failed) -> ProviderError:
        error: HiveyardError = wire.failure(self._machine, said)
        return error if isinstance(error, MachineLost | CannotExecute) else self.lost(error.message, error.hint)

    def lost(self, why: str, hint: str = "") -> MachineLost:
        return MachineLost(f"machine {self._machine} is lost: {why}", hint=hint, machine=self._machine)


class _Execution:
    """One program in a machine, as a Stream."""

    def __init__(self, talk: Talk, entrance: Entrance) -> None:
        self._talk = talk
        self._entrance = entrance
        self._id = talk.begin(self)
        self._started = False
        self._status: int | None = None
        self._failed: wire.Failed | None = None
        self._held: dict[str, deque[bytes]] = {"stdout": deque(), "stderr": deque()}
        self._room = {"stdout": wire.WINDOW, "stderr": wire.WINDOW}
        self._owed = {"stdout": 0, "stderr": 0}
        self._ended: set[str] = set()
        self._credit = wire.WINDOW
        self._sending = anyio.Lock()
        self._shut = False

    async def start(self, machine: str, words: Sequence[bytes]) -> None:
        """Wait until it has started. Raises CannotExecute, MachineLost."""
        try:
            await self._talk.say(self._id, "exec", machine=machine, argv=words)
            await self._talk.until(lambda: self._started or self._over)
        except ProviderError as error:
            raise await self._entrance.broken(error) from error
        if not self._started and self._failed is not None:
            raise self._entrance.failed(self._failed)

    async def close(self) -> None:
        """Release the program in any state."""
        self._talk.forget(self._id)
        with suppress(ProviderError):
            await self._talk.say(self._id, "close")

    # --- the Stream ----------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        async with self._sending:
            left = memoryview(data)
            while left and not self._shut:
                with suppress(ProviderError):  # `wait` tells
                    await self._talk.until(lambda: self._credit > 0 or self._over)
                if self._over or self._talk.over is not None:
                    return
                size = min(len(left), self._credit, wire.PIECE)
                self._credit -= size
                await self._tell("stdin", data=bytes(left[:size]))
                left = left[size:]

    async def send_eof(self) -> None:
        async with self._sending:
            if not self._shut and not self._over:
                self._shut = True
                await self._tell("stdin_end")

    async def receive(self) -> bytes:
        return await self._receive("stdout")

    async def receive_error(self) -> bytes:
        return await self._receive("stderr")

    async def wait(self) -> int:
        try:
            await self._talk.until(lambda: self._over)
        except ProviderError as error:
            raise await self._entrance.broken(error) from error
        if self._status is not None:
            return self._status
        assert self._failed is not None
        raise self._entrance.failed(self._failed)

    # --- helpers -------------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._status is not None or self._failed is not None

    async def _receive(self, stream: str) -> bytes:
        held = self._held[stream]
        with suppress(ProviderError):  # `wait` tells
            await self._talk.until(lambda: bool(held) or stream in self._ended or self._failed is not None)
        data = b"".join(held)
        held.clear()
        self._owed[stream] += len(data)
        if self._owed[stream] >= wire.WINDOW // 2 and stream not in self._ended:
            credit, self._owed[stream] = self._owed[stream], 0
            self._room[stream] += credit
            await self._tell("credit", stream=stream, bytes=credit)
        return data

    async def _tell(self, type: str, **fields: object) -> None:
        with suppress(ProviderError):  # `wait` tells
            await self._talk.say(self._id, type, **fields)

    def take(self, line: wire.Line) -> bool:
        match line:
            case wire.Started() if not self._started and not self._over:
                self._started = True
            case wire.Output(stream=stream, data=data) if self._started and stream not in self._ended:
                self._room[stream] -= len(data)
                if data:
                    self._held[stream].append(data)
                return self._room[stream] >= 0
            case wire.End(stream=stream) if self._started:
                self._ended.add(stream)
            case wire.Credit(bytes=more) if self._started and 0 < more <= wire.WINDOW:
                self._credit = min(self._credit + more, wire.WINDOW)
            case wire.Exited(status=status) if self._started and not self._over and status in _STATUSES:
                self._status = status
            case wire.Failed() if not self._over:
                self._failed = line
            case _:
                return False
        return True
