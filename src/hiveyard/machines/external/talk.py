"""A talk with one running program: lines out, lines in, and what became of it.

There is no task of its own: of all who wait for something, one listens for all (`_lead`), and whoever writes listens
too, so that neither side ever waits for the other to read. Nothing that the program says can hold us up or grow: a
line has a largest length, commands have credit, what it says on stderr is kept to its last bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

import anyio
import msgspec

from hiveyard.core.errors import (
    HiveyardError,
    ProviderBadAnswer,
    ProviderError,
    ProviderFailed,
    ProviderTimeout,
)
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.external import wire
from hiveyard.machines.shared.attached import AttachedStream

T = TypeVar("T")
_COMPLAINT = 4 << 10
_LAST_WORDS = 0.5  # seconds in which a program that ended may still be heard on stderr
_PARTING = 10.0  # seconds in which what was cancelled may be brought to its end


class Box(Protocol):
    """Where the lines about one request go."""

    def take(self, line: wire.Line) -> bool:
        """Whether the line makes sense now."""


class _Reply:
    def __init__(self, report: Report) -> None:
        self.line: wire.Result | wire.Failed | None = None
        self._report = report

    @property
    def over(self) -> bool:
        return self.line is not None

    def take(self, line: wire.Line) -> bool:
        if isinstance(line, wire.Reported):
            self._report(one_line(line.line))
        elif self.line is None and isinstance(line, wire.Result | wire.Failed):
            self.line = line
        else:
            return False
        return True


class Talk:
    """`stream` is the program; `leave` lets go of it and ends it. `mask` is for what it says itself."""

    def __init__(
        self,
        name: str,
        stream: AttachedStream,
        leave: Callable[[], Awaitable[None]],
        silence: float,
        hint: str,
        mask: Mask,
    ) -> None:
        self.over: ProviderError | None = None
        self._name = name
        self._stream = stream
        self._leave = leave
        self._silence = silence
        self._hint = hint
        self._mask = mask
        self._lines = LineSplitter(limit=wire.LINE_LIMIT)
        self._boxes: dict[int, Box] = {}
        self._next = 1
        self._led = False
        self._news = anyio.Event()
        self._writing = anyio.Lock()
        self._heard_at = anyio.current_time()
        self._pinged = False
        self._complaint = bytearray()
        self._mute = anyio.Event()

    @property
    def ended(self) -> bool:
        return self.over is not None or self._stream.ended

    # --- what others ask of it -----------------------------------------------------------------------------------

    def begin(self, box: Box) -> int:
        """The number of a new request, whose lines go to `box`."""
        id, self._next = self._next, self._next + 1
        self._boxes[id] = box
        return id

    def forget(self, id: int) -> None:
        """Forget a request: later lines about it are dropped."""
        self._boxes.pop(id, None)

    async def ask(
        self, verb: str, kind: type[T], fields: Mapping[str, object], timeout: float, report: Report = quiet
    ) -> T:
        """The answer to a request. Raises what the program tells, ProviderTimeout, and as `until`. Cancelled, it
        returns when the program has brought the request to an end, within bounds."""
        reply = _Reply(report)
        id = self.begin(reply)
        try:
            with anyio.fail_after(timeout):
                await self.say(id, verb, **fields)
                await self.until(lambda: reply.over)
        except TimeoutError:
            await self._cancel(id, reply)
            raise self._error(ProviderTimeout, f"no answer to {verb} in {timeout:g}s") from None
        except anyio.get_cancelled_exc_class():
            await self._cancel(id, reply)
            raise
        finally:
            self.forget(id)
        assert reply.line is not None
        if isinstance(reply.line, wire.Failed):
            raise wire.failure(self._name, reply.line)
        try:
            return msgspec.json.decode(reply.line.value, type=kind)
        except msgspec.MsgspecError as error:
            raise self._error(ProviderBadAnswer, f"the answer to {verb} is none: {one_line(str(error))}") from None

    async def say(self, id: int, type: str, **fields: object) -> None:
        """Give the program a line; whole, or the program is ended. Raises as `until`."""
        encoded = wire.line(id, type, fields)
        async with self._writing:
            self._check()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(2 * self._silence) as scope:
                    await self._write(encoded)
                if scope.cancelled_caught:
                    await self.end(self._error(ProviderTimeout, f"it read nothing for {2 * self._silence:g}s"))
        self._check()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Return as soon as `ready`. Raises a ProviderError when the program ends before, says what is none of the
        protocol, or is silent."""
        while not ready():
            self._check()
            if self._led:
                await self._news.wait()
            else:
                await self._lead(ready)

    async def end(self, error: ProviderError) -> None:
        """End the program; whatever is under way fails with `error`."""
        if self.over is None:
            self.over = error
        self._tell()
        with anyio.CancelScope(shield=True):
            await self._leave()

    # --- within --------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.over is not None:
            # Anew each time: one exception raised in many tasks would grow with each of them.
            raise type(self.over)(self.over.message, hint=self.over.hint)

    def _error(self, kind: type[ProviderError], why: str) -> ProviderError:
        return kind(f"{self._name}: its program failed: {why}", hint=self._hint)

    async def _cancel(self, id: int, reply: _Reply) -> None:
        # A program that is gone or stuck is found out by whoever asks it next; it must not hide the cancelling.
        with anyio.CancelScope(shield=True), anyio.move_on_after(_PARTING), contextlib.suppress(HiveyardError):
            await self.say(id, "cancel")
            await self.until(lambda: reply.over)

    async def _write(self, encoded: bytes) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen_on, name=f"hear {self._name} while it is told something")
            await self._stream.send(encoded)
            group.cancel_scope.cancel()

    async def _listen_on(self) -> None:
        with contextlib.suppress(ProviderError):
            await self.until(lambda: False)

    def _tell(self) -> None:
        # Wakes all who wait now, and nobody who comes later.
        self._news.set()
        self._news = anyio.Event()

    async def _lead(self, ready: Callable[[], bool]) -> None:
        """Listen for all, until what one of them waits for has come."""
        self._led = True
        failed: ProviderError | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._hear_complaints, name=f"hear what {self._name} complains of")
                group.start_soon(self._watch, name=f"watch {self._name}")
                try:
                    await self._listen(ready)
                except ProviderError as error:
                    failed = self.over = error
                group.cancel_scope.cancel()
        finally:
            self._led = False
            self._tell()
        if failed is not None:
            await self.end(failed)

    async def _listen(self, ready: Callable[[], bool]) -> None:
        while not ready() and self.over is None:
            piece = await self._stream.receive()
            if self.over is not None:
                return
            if not piece:
                raise await self._death()
            self._heard_at, self._pinged = anyio.current_time(), False
            for line in self._lines.feed(piece):
                self._take(line)
            self._tell()

    def _take(self, line: Line) -> None:
        if line.cut:
            raise self._error(ProviderBadAnswer, f"it said a line of more than {wire.LINE_LIMIT} bytes")
        try:
            said = self._understood(line.data)
        except ProviderBadAnswer as error:
            raise self._error(ProviderBadAnswer, error.message) from None
        box = self._boxes.get(said.id)
        if box is None and 0 < said.id < self._next:
            return  # about what is over
        if box is None or not box.take(said):
            raise self._error(ProviderBadAnswer, f"it said what makes no sense now: {one_line(repr(said), 120)}")

    def _understood(self, data: bytes) -> wire.Line:
        """A line, with the program's own secrets masked in all but what comes out of a machine."""
        with contextlib.suppress(ProviderBadAnswer):  # raised anew below, masked
            said = wire.parse(data)
            if isinstance(said, wire.Output):
                return said
        return wire.parse(self._mask.data(data))

    async def _death(self) -> ProviderError:
        """Return the error for a program that has closed its stdout."""
        status = None
        with anyio.move_on_after(_LAST_WORDS):
            status = await self._stream.wait()
        with anyio.move_on_after(_LAST_WORDS):
            await self._mute.wait()
        how = "it closed its stdout" if status is None else f"it ended with exit code {status}"
        said = one_line(decode(self._mask.data(bytes(self._complaint))).strip()[-300:], 300)
        return self._error(ProviderFailed, f"{how}: {said}" if said else how)

    async def _hear_complaints(self) -> None:
        while not self._mute.is_set():
            piece = await self._stream.receive_error()
            if not piece:
                self._mute.set()
            self._complaint = (self._complaint + piece)[-_COMPLAINT:]

    async def _watch(self) -> None:
        """Ping a silent program, and end one that is silent even then."""
        while True:
            await anyio.sleep(self._silence)
            if anyio.current_time() - self._heard_at < self._silence:
                continue
            if self._pinged:
                await self.end(self._error(ProviderTimeout, f"it has been silent for {2 * self._silence:g}s"))
                return
            self._pinged = True
            await self._ping()

    async def _ping(self) -> None:
        id = self.begin(_Reply(quiet))
        with contextlib.suppress(ProviderError):
            await self.say(id, "ping")
        self.forget(id)
