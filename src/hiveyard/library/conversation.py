"""A live conversation with an agent: prompts go in, events come out, and its requests for permission are answered.

The agent's process, its output and all that was sent to it are in the guest, with the process manager. So a
conversation that is opened again, after a lost connection or a crash, continues where it was: a new driver reads all
output again and wants to send the same lines under the same keys, and the inbox takes each key once. There is no
connection to lose and no state of the host to keep.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.drivers import Answer, Driver, Step
from hiveyard.core.drivers import Line as ToTell
from hiveyard.core.errors import AgentFlood, BadInput, GuestDisconnected, HiveyardError, ProcessEnded
from hiveyard.core.events import AgentEnded, AgentEvent
from hiveyard.core.ports import Guest, ProcessManager
from hiveyard.kit.group import together
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.mask import Mask
from hiveyard.kit.names import new_id
from hiveyard.library.errors import masked
from hiveyard.library.prompt_log import PromptLog

T = TypeVar("T")
_LINE_LIMIT = 64 << 20
"""Bytes of one line: a tool's whole answer is on one."""
_UNREAD_LIMIT = 10_000
"""Events that may wait for a reader before the agent's output is left where it is; of output, as much as one line."""
_ROUNDED = 1024
"""Bytes that a manager may keep less than an output's limit."""
_RECONNECT = 0.5
_LONGEST_KEY = 64
_LASTING = "choose "
"""What is owed beyond the end of a turn."""


class _Unread(NamedTuple):
    """An event that waits for its reader. The last of a line has the offset after that line, and its size."""

    event: AgentEvent
    offset: int | None = None
    size: int = 0


class _Begun(NamedTuple):
    """A prompt that the program was told. `former`: events that wait for their reader and came before. `over`: its turn
    had ended then."""

    former: int
    over: bool


class Conversation:
    """What one process says and is told. `offset` counts the bytes of its output that `events` has given all of.

    Whoever opens one again tells the agent nothing before it is heard up to the offset. Somebody has to read `events`
    while a prompt waits for the end of a turn: an agent that says more than may wait for a reader is not heard. Events
    are the agent's own words, in which nothing is masked; in errors the secrets of `mask` are."""

    def __init__(
        self, guest: Guest, manager: ProcessManager, spec: ProcessSpec, driver: Driver, offset: int, mask: Mask
    ) -> None:
        self._guest = guest
        self._manager = manager
        self._process = spec.name
        self._limit = None if spec.rotate else spec.output_limit
        self._driver = driver
        self._mask = mask
        self._unread: deque[_Unread] = deque()
        self._unread_size = 0
        self._changed = anyio.Condition()
        self._acting = anyio.Lock()
        self._ended: ProcessInfo | None = None
        self._failure: HiveyardError | None = None
        self._from = offset
        self._heard_to = 0
        self._over_at = 0
        self._owed: deque[tuple[str, Step]] = deque()
        self._told = PromptLog(guest, spec.name)
        self.offset = offset

    @property
    def conversation(self) -> str | None:
        """The agent's own id of it, to go on with in another process (`Turn.conversation`), once it is known."""
        return self._driver.conversation

    @property
    def ended(self) -> ProcessInfo | None:
        """How the process ended; None while it lives."""
        return self._ended

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """All that happens from the offset on, until the process has ended. One reader at a time. Raises AgentFlood
        once its output is full, MachineLost and what else may happen to a guest."""
        while (event := await self._next()) is not None:
            yield event

    async def turn(self, text: str, *, key: str | None = None) -> AsyncGenerator[AgentEvent, None]:
        """A prompt, and what happens until its turn has ended; the last is an AgentEnded. What was not read of former
        turns comes first, also while the prompt waits for their end: what they ask can be answered. With a `key` whose
        turn is over, only that comes. As `prompt`, and as `events`."""
        _check_words(text)
        asked = _key("prompt", key)
        while (begun := await self._masked(self._prompted(text, asked, key is not None, unread=True))) is None:
            if (event := await self._next()) is not None:
                yield event
        former, over = begun
        while (former > 0 or not over) and (event := await self._next()) is not None:
            yield event
            former -= 1
            over = over or (former < 0 and isinstance(event, AgentEnded))

    async def prompt(self, text: str, *, key: str | None = None) -> None:
        """Begin a turn, once the one at work has ended. When this returns the prompt is safe with the guest. The same
        `key` again, also after a crash, is the same prompt and told once; after a crash give the last one again first,
        since a program that has said nothing yet looks idle. Raises ProcessEnded, BadInput."""
        _check_words(text)
        await self._masked(self._prompted(text, _key("prompt", key), key is not None))

    async def steer(self, text: str, *, key: str | None = None) -> None:
        """Something more for the turn at work. Raises BadInput where the agent takes no such thing, ProcessEnded."""
        _check_words(text)
        await self._do(lambda: self._driver.steer(_key("steer", key), text))

    async def interrupt(self) -> None:
        """End the turn at work and keep the conversation; its AgentEnded comes as an event."""
        await self._do(lambda: self._driver.interrupt(_key("interrupt", None)), "interrupt")

    async def answer(self, request: str, answer: Answer) -> None:
        """Decide about an AgentAsked; the first answer counts. Raises BadInput for a request that is not open."""
        _check_words(answer.message, answer.input)
        await self._do(lambda: self._driver.answer(request, answer), f"answer {request}")

    async def choose(self, model: str) -> None:
        """Turns to come use this model. Raises BadInput where the agent cannot change it."""
        chosen = f"{_LASTING}{model}"
        await self._do(lambda: self._driver.choose(_key("model", None), model), chosen, lambda: self._driver.ready)

    async def close(self) -> None:
        """No more prompts: the program ends when it has done what it was told. Wait for it by reading `events`."""
        await self._masked(self._manager.close_inbox(self._guest, self._process))

    # --- the process ------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            await self._masked(self._read())
        except HiveyardError as error:
            self._failure = error
        async with self._changed:
            self._changed.notify_all()

    async def _read(self) -> None:
        """The output from its first line to its last; the driver answers what it has to."""
        await self._heard(0, self._driver.start)
        splitter = LineSplitter(limit=_LINE_LIMIT)
        while True:
            try:
                pieces = self._manager.follow(self._guest, self._process, offset=splitter.offset)
                async with aclosing(pieces):  # type: ignore[type-var]  # the port promises one that can be closed
                    async for piece in pieces:
                        await self._lines(splitter.feed(piece))
                        await self._bound(splitter.offset)
                break
            except GuestDisconnected:
                await anyio.sleep(_RECONNECT)
        await self._lines(splitter.finish())
        await self._over(splitter.offset)

    async def _lines(self, lines: Sequence[Line]) -> None:
        for line in lines:
            await self._room()
            await self._heard(line.end, partial(self._driver.feed, line.data), len(line.data))

    async def _bound(self, size: int) -> None:
        """What comes after the last byte that is kept is heard by nobody: the end of a turn, a question."""
        if self._limit is not None and size > self._limit - _ROUNDED:
            await self._manager.stop(self._guest, self._process)
            raise AgentFlood(
                f"{self._process} wrote more than the {self._limit >> 10} KiB that are kept of its output, and was"
                " stopped",
                hint="go on in a new process: Turn.conversation",
            )

    async def _over(self, offset: int) -> None:
        info = await self._manager.get(self._guest, self._process)
        stderr = await self._manager.logs(self._guest, self._process, stream="stderr")
        await self._heard(offset + 1, lambda: self._driver.exited(info.exit_code, stderr.decode("utf-8", "replace")))
        self._ended = info

    async def _heard(self, offset: int, meaning: Callable[[], Step], size: int = 0) -> None:
        async with self._acting:
            step = meaning()
            with contextlib.suppress(ProcessEnded):  # it does not wait for what it is told any more
                await self._tell(step.lines)
            self._heard_to = offset
            if any(isinstance(event, AgentEnded) for event in step.events):
                self._over_at = offset
                self._owed = deque(one for one in self._owed if one[0].startswith(_LASTING))
            await self._publish(step.events if offset > self._from else (), offset, size)

    async def _do(self, act: Callable[[], Step], owed: str = "", when: Callable[[], bool] = lambda: True) -> None:
        """`owed`: the driver takes it for done from here on. What the program cannot be told of it now is told before
        what comes next, and whoever tries the same again has done it then."""
        await self._masked(self._acted(act, owed, when))

    async def _acted(self, act: Callable[[], Step], owed: str, when: Callable[[], bool]) -> None:
        if owed in await self._paid():
            return
        async with self._whole(when):
            step = act()
            if owed:
                self._owed.append((owed, step))
                await self._pay()
            else:
                await self._tell(step.lines)
                await self._publish(step.events)

    async def _paid(self) -> set[str]:
        """All that is owed is told; what that was."""
        if not self._owed:
            return set()
        async with self._whole(lambda: True):
            return await self._pay()

    async def _pay(self) -> set[str]:
        paid = set()
        while self._owed:
            owed, step = self._owed[0]
            await self._tell(step.lines)
            await self._publish(step.events)
            paid.add(owed)
            self._owed.popleft()
        return paid

    async def _prompted(self, text: str, key: str, known: bool, unread: bool = False) -> _Begun | None:
        """Begin a turn. With `unread` it does not wait while there are events to be read: None. `known`: the key may
        have been told before."""
        await self._paid()
        async with self._whole(lambda: self._driver.ready or (unread and bool(self._unread))):
            if not self._driver.ready:
                return None
            former = len(self._unread)
            lines = self._driver.prompt(key, text)
            at = await self._told_at(key) if known else None
            if not await self._tell(lines) and at is not None:
                return _Begun(former, over=self._over_at > at)
            # Nobody knew of it: if it is not new to the inbox now, our own try was cut off and made again.
            if at is not None:
                await self._told.note(key, self._heard_to)
            await self._publish(self._driver.prompt_sent(text))
            return _Begun(former, over=False)

    async def _told_at(self, key: str) -> int | None:
        """Where the output stood when it was told; None for now, for the first time."""
        at = await self._told.at(key)
        if at is not None and at <= self._heard_to:
            return at
        await self._told.note(key, self._heard_to)
        return None

    @asynccontextmanager
    async def _whole(self, when: Callable[[], bool]) -> AsyncIterator[None]:
        """Waits for its time. What is done in the block is done to its end once it has begun: cut in the middle, nobody
        would know what the program was told."""
        while True:
            await self._until(when)
            async with self._acting:
                if when():  # somebody else may have been first
                    with anyio.CancelScope(shield=True):
                        yield
                    return

    async def _masked(self, work: Awaitable[T]) -> T:
        """What a guest puts into errors is masked: it knows the secrets."""
        try:
            return await work
        except HiveyardError as error:
            failure = masked(error, self._mask)
        # Outside of the handler, else Python would hang the error as it was to this one.
        raise failure

    async def _tell(self, lines: Sequence[ToTell]) -> bool:
        """Whether any of it was new to the program's inbox."""
        new = [await self._manager.send(self._guest, self._process, line.key, line.data) for line in lines]
        return any(new)

    # --- who reads --------------------------------------------------------------------------------------------------

    async def _publish(self, events: Sequence[AgentEvent], offset: int | None = None, size: int = 0) -> None:
        """What waits for the driver looks at it again, too."""
        async with self._changed:
            if events:
                self._unread.extend(_Unread(event) for event in events[:-1])
                self._unread.append(_Unread(events[-1], offset, size))
                self._unread_size += size
            self._changed.notify_all()

    async def _room(self) -> None:
        """Waits for the reader, and holds up nobody who acts meanwhile: that may be the reader."""
        async with self._changed:
            while len(self._unread) > _UNREAD_LIMIT or self._unread_size > _LINE_LIMIT:
                await self._changed.wait()

    async def _next(self) -> AgentEvent | None:
        async with self._changed:
            while not self._unread:
                self._check()
                if self._ended is not None:
                    return None
                await self._changed.wait()
            event, offset, size = self._unread.popleft()
            self._unread_size -= size
            self.offset = self.offset if offset is None else offset
            self._changed.notify_all()
            return event

    async def _until(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            while True:
                self._check()
                if self._ended is not None:
                    raise ProcessEnded(f"{self._process} has ended and takes nothing more")
                if self._heard_to >= self._from and true():
                    return
                await self._changed.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


@asynccontextmanager
async def conversing(
    guest: Guest,
    manager: ProcessManager,
    spec: ProcessSpec,
    driver: Driver,
    *,
    offset: int = 0,
    mask: Mask = Mask(()),  # noqa: B008 - it has no state
) -> AsyncIterator[Conversation]:
    """The conversation with a process that was started with an inbox, for as long as the block lasts; leaving it ends
    nothing in the guest. `events` begins at `offset` of the output, which is the `offset` of one that was left."""
    conversation = Conversation(guest, manager, spec, driver, offset, mask)
    async with together() as listening:
        listening.start_soon(conversation._listen)
        yield conversation
        listening.cancel_scope.cancel()


def _key(kind: str, key: str | None) -> str:
    """Some programs give it back as the id of an answer, which is a word of a stranger and bounded."""
    key = new_id() if key is None else key
    plain = len(key) <= _LONGEST_KEY and key.isprintable()
    return f"{kind}-{key if plain else hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _check_words(*words: object) -> None:
    """Raises BadInput for what no program can be told."""
    try:
        msgspec.json.encode(words)
    except UnicodeEncodeError as error:
        raise BadInput(f"a surrogate ({error.object[error.start]!r}) cannot be told to a program") from error
