"""A program in a guest of Morph Cloud as a Stream. Its output is requested until all of it arrived (see scripts.py).

Of several who wait for something, one asks for all. A connection that breaks, or whoever asks being cancelled, loses
nothing: what has not arrived is asked for by its number.
"""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import anyio

from hiveyard.core.errors import GuestDisconnected, MachineLost, ProviderBadAnswer, ProviderError, ProviderNotFound
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.text import one_line
from hiveyard.machines.morph import scripts
from hiveyard.machines.morph.wire import Executed, Said

_HELD_LIMIT = 1 << 20  # bytes of one output that are kept while the other is asked for
_LINE_LIMIT = 8 << 20
_PIECE = 1 << 20  # bytes of stdin that are sent at once
WORD = 96 << 10  # characters: a little less than one argument of a command line may have
_LONG, _SHORT = 20, 2  # seconds that the guest waits for something to say
_LIVE = 120  # seconds that one stream lasts
_FAILURES = 5
_PAUSE = 0.3


class Way(Protocol):
    """The access to its machine that a program needs."""

    streaming: bool

    async def execute(self, command: Sequence[str], seconds: float) -> Executed:
        """Run one of our commands as root; it may be repeated. It may wait `seconds` for output."""

    def live(self, command: Sequence[str]) -> AsyncGenerator[Said, None]:
        """Run a command like `run`, and yield its output while it runs."""

    async def check(self) -> None:
        """Wait until a machine that did not answer should be asked again. Raises MachineLost."""


class Program:
    """`id` is its name in the guest, where it was started."""

    def __init__(self, id: str, way: Way) -> None:
        self._id = id
        self._way = way
        self._held: dict[str, deque[bytes]] = {"o": deque(), "e": deque()}
        self._size = {"o": 0, "e": 0}  # bytes that are held of each
        self._next = {"o": 0, "e": 0}
        self._known: set[str] = set()
        self._status: int | None = None
        self._lost: MachineLost | None = None
        self._asking = False
        self._changed = anyio.Event()
        self._live: AsyncGenerator[Said, None] | None = None
        self._lines = LineSplitter(limit=_LINE_LIMIT)
        self._failures = 0
        self._sent = 0
        self._sending = anyio.Lock()
        self._deaf = False

    # --- the Stream ----------------------------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        async with self._sending:
            for start in range(0, len(data), _PIECE):
                await self._send(data[start : start + _PIECE])

    async def send_eof(self) -> None:
        async with self._sending:
            await self._send(b"", last=True)
            self._deaf = True

    async def receive(self) -> bytes:
        return await self._receive("o", "e")

    async def receive_error(self) -> bytes:
        return await self._receive("e", "o")

    async def wait(self) -> int:
        while self._status is None:
            if self._lost is not None:
                raise self._lost
            if self._asking:
                await self._changed.wait()
            elif self._full("o") or self._full("e"):
                await self._ask("end")
            else:
                await self._ask("any")
        return self._status

    async def close(self) -> None:
        """Release the program, and remove its files in the guest."""
        await self._unplug()
        await self._way.execute(("bash", "-c", scripts.LEAVE, "hv", self._id), _SHORT)

    # --- helpers -------------------------------------------------------------------------------------------------

    async def _receive(self, mine: str, other: str) -> bytes:
        while not self._held[mine] and mine not in self._known and self._lost is None:
            if self._asking or (self._full(other) and self._next[mine]):
                await self._changed.wait()
            else:
                # Nobody may read the other output before the first word of this one is here: `open` waits for it.
                await self._ask(mine if self._full(other) else "any")
        if not self._held[mine]:
            return b""
        pieces = b"".join(self._held[mine])
        self._held[mine].clear()
        self._size[mine] = 0
        self._tell()
        return pieces

    def _full(self, output: str) -> bool:
        return self._size[output] >= _HELD_LIMIT

    def _tell(self) -> None:
        # Wakes the tasks that wait now, but not later ones.
        self._changed.set()
        self._changed = anyio.Event()

    async def _ask(self, what: str) -> None:
        """Fetch new output, or find out that the machine is lost. Only one task does this at a time."""
        self._asking = True
        try:
            if what in self._held:
                await self._unplug()  # a stream has both outputs
            if what != "any" or not self._way.streaming:
                await self._look("once" if what == "any" else what)
            else:
                await self._hear()
            self._failures = 0
        except MachineLost as error:
            self._lost = error
        except ProviderError as error:
            await self._unplug()
            await self._survive(error)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._unplug()
            raise
        finally:
            self._asking = False
            self._tell()

    async def _survive(self, error: ProviderError) -> None:
        """Decide after a failure whether the machine is lost or is asked again."""
        self._failures += 1
        try:
            await self._way.check()
        except MachineLost as lost:
            self._lost = lost
            return
        if self._failures > _FAILURES:
            self._lost = GuestDisconnected(f"what a command said could not be got: {error.message}")
        elif not isinstance(error, ProviderNotFound):
            await anyio.sleep(_PAUSE * self._failures)

    async def _look(self, way: str) -> None:
        done = await self._way.execute(self._words(way, _LONG if way == "once" else _SHORT), _LONG)
        _check(done.exit_code, done.stderr)
        lines = LineSplitter(limit=_LINE_LIMIT)
        for line in lines.feed(done.stdout.encode()):
            self._take(line.data)

    async def _hear(self) -> None:
        """Return the next piece of the stream, which is opened if necessary."""
        if self._live is None:
            self._lines = LineSplitter(limit=_LINE_LIMIT)
            self._live = self._way.live(self._words("live", _LIVE))
        said = await anext(self._live, None)
        if said is None or said.type == "exit_code":
            await self._unplug()
            _check(0 if said is None else said.content, "")
        elif said.type == "stdout" and isinstance(said.content, str):
            for line in self._lines.feed(said.content.encode()):
                self._take(line.data)

    async def _unplug(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.aclose()

    def _words(self, way: str, seconds: int) -> tuple[str, ...]:
        known = "".join(sorted(self._known))
        numbers = (str(self._next["o"]), str(self._next["e"]))
        return ("bash", "-c", scripts.LOOK, "hv", self._id, *numbers, known, way, str(seconds))

    def _take(self, line: bytes) -> None:
        """Handle one line of LOOK. Raises ProviderBadAnswer."""
        word, _, rest = line.partition(b" ")
        name = word.decode("ascii", "replace")
        if name == "x" and rest.isdigit():
            self._status = int(rest[:3])
            self._known.add("x")
        elif name in self._held and rest == b"end":
            self._known.add(name)
        elif name in self._held:
            self._take_pieces(name, rest)
        elif name != ".":
            raise ProviderBadAnswer(f"morph: a guest said {one_line(repr(line[:80]))}")

    def _take_pieces(self, name: str, line: bytes) -> None:
        first, last, text = (*line.split(b" ", 2), b"", b"")[:3]
        if first != str(self._next[name]).encode() or not last.isdigit():
            raise ProviderBadAnswer(f"morph: a guest said {one_line(repr(line[:80]))}")
        piece = _decoded(text)
        self._held[name].append(piece)
        self._size[name] += len(piece)
        self._next[name] = int(last[:12])

    async def _send(self, data: bytes, *, last: bool = False) -> None:
        text = base64.b64encode(data).decode()
        words = [text[start : start + WORD] for start in range(0, len(text), WORD)]
        command = ("bash", "-c", scripts.SEND, "hv", self._id, str(self._sent), "1" if last else "", *words)
        while not self._deaf and self._lost is None:
            try:
                done = await self._way.execute(command, _LONG)
                if done.exit_code == scripts.FULL:
                    continue
                if done.exit_code == scripts.UNWANTED:
                    self._deaf = True
                    return
                _check(done.exit_code, done.stderr)
            except MachineLost as error:
                self._lost = error
            except ProviderError as error:
                await self._survive(error)
                continue
            self._sent += 1
            return


def _check(code: int | str, said: str) -> None:
    if code == scripts.GONE:
        raise MachineLost("the machine was started anew under the command")
    if code != 0:
        raise ProviderBadAnswer(f"morph: a guest's bash ended with {code}: {one_line(said)}")


def _decoded(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ProviderBadAnswer(f"morph: a guest said something else than base64: {error}") from error
