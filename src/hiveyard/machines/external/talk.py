"""Exchange lines with one running program.

There is no background task: one of the waiting callers reads for all (`_lead`). A caller that writes also reads, so
that neither side waits for the other to read. The program's output is bounded: the length of a line, the credit of
commands, and the last bytes of stderr.
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
    """The receiver of the lines of one request."""

    def take(self, line: wire.Line) -> bool:
        """Handle a line. Return whether it is valid at this point."""


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
    """`stream` is the program; `leave` disconnects from it and ends it. `mask` hides secrets in its own messages."""

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

    # --- requests ------------------------------------------------------------------------------------------------

    def begin(self, box: Box) -> int:
        """Return the number of a new request, whose lines are passed to `box`."""
        id, self._next = self._next, self._next + 1
        self._boxes[id] = box
        return id

    def forget(self, id: int) -> None:
        """Forget a request: later lines about it are dropped."""
        self._boxes.pop(id, None)

    async def ask(
        self, verb: str, kind: type[T], fields: Mapping[str, object], timeout: float, report: Report = quiet
    ) -> T:
        """Return the answer to a request. Raises the program's error, ProviderTimeout, and as `until`. If it is
        cancelled, it first waits, for a limited time, until the program has ended the request."""
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
            raise self._error(ProviderBadAnswer, f"the answer to {verb} is invalid: {one_line(str(error))}") from None

    async def say(self, id: int, type: str, **fields: object) -> None:
        """Send a line to the program. If it cannot be sent completely, the program is ended. Raises as `until`."""
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
        """Wait until `ready`. Raises a ProviderError if the program ends, violates the protocol or is silent."""
        while not ready():
            self._check()
            if self._led:
                await self._news.wait()
            else:
                await self._lead(ready)

    async def end(self, error: ProviderError) -> None:
        """End the program. Pending requests fail with `error`."""
        if self.over is None:
            self.over = error
        self._tell()
        with anyio.CancelScope(shield=True):
            await self._leave()

    # --- helpers -------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.over is not None:
            # A new one each time: an exception that is raised in many tasks grows with each of them.
            raise type(self.over)(self.over.message, hint=self.over.hint)

    def _error(self, kind: type[ProviderError], why: str) -> ProviderError:
        return kind(f"{self._name}: its program failed: {why}", hint=self._hint)

    async def _cancel(self, id: int, reply: _Reply) -> None:
        # The next request reports a program that has ended or hangs. Here it must not replace the cancellation.
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
        # Wakes the tasks that wait now, but not later ones.
        self._news.set()
        self._news = anyio.Event()

    async def _lead(self, ready: Callable[[], bool]) -> None:
        """Read for all waiting tasks, until this one is `ready`."""
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
        """Decode a line. Secrets of the program are masked, except in the output of machines."""
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
        """Ping a silent program, and end it if it does not answer."""
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
