"""A conversation with a running agent: send prompts, read events, answer permission requests.

The agent's process, its output and everything that was sent are in the guest, with the process manager. A conversation
that is opened again, after a lost connection or a crash, therefore continues where it was: a new driver reads all
output again and sends the same lines under the same keys, and the inbox takes each key once. The host keeps no state.
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
from hiveyard.core.drivers import Line as InputLine
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
"""The largest line in bytes. A tool's complete answer is on one line."""
_MAX_UNREAD = 10_000
"""The number of unread events after which reading the agent's output pauses. The size limit is one line."""
_LIMIT_MARGIN = 1024
"""The bytes by which a process manager may miss an output's limit."""
_RECONNECT = 0.5
_MAX_KEY = 64
_PERSISTENT = "choose "
"""The prefix of pending actions that stay pending after the end of a turn."""


class _Unread(NamedTuple):
    """An event that was not read yet. The last event of a line has the offset after that line, and its size."""

    event: AgentEvent
    offset: int | None = None
    size: int = 0


class _PromptResult(NamedTuple):
    """The result of sending a prompt: the number of unread events before it, and whether its turn had already ended."""

    unread_before: int
    already_over: bool


class Conversation:
    """A conversation with one process. `offset` counts the bytes of its output whose events were all read.

    After opening it again, nothing is sent to the agent before its output was read up to the offset. `events` must be
    read while a prompt waits for the end of a turn: reading the agent's output pauses when too many events are unread.
    Events are the agent's own texts and are not masked; errors are masked with `mask`."""

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
        self._lock = anyio.Lock()
        self._ended: ProcessInfo | None = None
        self._failure: HiveyardError | None = None
        self._start_offset = offset
        self._processed_to = 0
        self._turn_ended_at = 0
        self._pending: deque[tuple[str, Step]] = deque()
        self._prompt_log = PromptLog(guest, spec.name)
        self.offset = offset

    @property
    def conversation(self) -> str | None:
        """The agent's own id of the conversation, once known. Another process can continue it (`Turn.conversation`)."""
        return self._driver.conversation

    @property
    def ended(self) -> ProcessInfo | None:
        """The state of the process after its end; None while it runs."""
        return self._ended

    async def events(self) -> AsyncGenerator[AgentEvent, None]:
        """Yield all events after the offset until the process has ended. There may be one reader at a time.

        Raises AgentFlood when its output is full, MachineLost and other errors of a guest."""
        while (event := await self._next()) is not None:
            yield event

    async def turn(self, text: str, *, key: str | None = None) -> AsyncGenerator[AgentEvent, None]:
        """Send a prompt and yield the events until its turn has ended. The last one is an AgentEnded.

        Unread events of earlier turns come first, even while the prompt waits for their end, so that their requests can
        be answered. With a `key` whose turn is over, only those are yielded. Raises like `prompt` and `events`."""
        _check_words(text)
        prompt_key = _key("prompt", key)
        while (result := await self._masked(self._send_prompt(text, prompt_key, key is not None, unread=True))) is None:
            if (event := await self._next()) is not None:
                yield event
        unread_before, already_over = result
        while (unread_before > 0 or not already_over) and (event := await self._next()) is not None:
            yield event
            unread_before -= 1
            already_over = already_over or (unread_before < 0 and isinstance(event, AgentEnded))

    async def prompt(self, text: str, *, key: str | None = None) -> None:
        """Begin a turn once the current one has ended. When this returns, the prompt is stored in the guest.

        The same `key`, even after a crash, means the same prompt, which is sent once. After a crash, repeat the last
        prompt first, because a program without output looks idle. Raises ProcessEnded, BadInput."""
        _check_words(text)
        await self._masked(self._send_prompt(text, _key("prompt", key), key is not None))

    async def steer(self, text: str, *, key: str | None = None) -> None:
        """Add text to the current turn. Raises BadInput if the agent does not support this, ProcessEnded."""
        _check_words(text)
        await self._act(lambda: self._driver.steer(_key("steer", key), text))

    async def interrupt(self) -> None:
        """End the current turn and keep the conversation. Its AgentEnded arrives as an event."""
        await self._act(lambda: self._driver.interrupt(_key("interrupt", None)), "interrupt")

    async def answer(self, request: str, answer: Answer) -> None:
        """Answer an AgentAsked. Only the first answer counts. Raises BadInput for a request that is not open."""
        _check_words(answer.message, answer.input)
        await self._act(lambda: self._driver.answer(request, answer), f"answer {request}")

    async def choose(self, model: str) -> None:
        """Select the model for later turns. Raises BadInput if the agent cannot change it."""
        pending_key = f"{_PERSISTENT}{model}"
        await self._act(
            lambda: self._driver.choose(_key("model", None), model), pending_key, lambda: self._driver.ready
        )

    async def close(self) -> None:
        """Send no more prompts: the program ends after the current ones. Read `events` to wait for its end."""
        await self._masked(self._manager.close_inbox(self._guest, self._process))

    # --- the process ------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._masked(self._read())
        except HiveyardError as error:
            self._failure = error
        async with self._changed:
            self._changed.notify_all()

    async def _read(self) -> None:
        """Process the output from its first line to its last, and send the driver's answers."""
        await self._handle(0, self._driver.start)
        splitter = LineSplitter(limit=_LINE_LIMIT)
        while True:
            try:
                pieces = self._manager.follow(self._guest, self._process, offset=splitter.offset)
                async with aclosing(pieces):  # type: ignore[type-var]  # the port promises one that can be closed
                    async for piece in pieces:
                        await self._process_lines(splitter.feed(piece))
                        await self._check_size(splitter.offset)
                break
            except GuestDisconnected:
                await anyio.sleep(_RECONNECT)
        await self._process_lines(splitter.finish())
        await self._process_ended(splitter.offset)

    async def _process_lines(self, lines: Sequence[Line]) -> None:
        for line in lines:
            await self._wait_for_reader()
            await self._handle(line.end, partial(self._driver.feed, line.data), len(line.data))

    async def _check_size(self, size: int) -> None:
        """Stop the process when its output is full: the end of a turn or a request after the last kept byte would be
        lost."""
        if self._limit is not None and size > self._limit - _LIMIT_MARGIN:
            await self._manager.stop(self._guest, self._process)
            raise AgentFlood(
                f"{self._process} wrote more than the {self._limit >> 10} KiB that are kept of its output, and was"
                " stopped",
                hint="continue in a new process: Turn.conversation",
            )

    async def _process_ended(self, offset: int) -> None:
        info = await self._manager.get(self._guest, self._process)
        stderr = await self._manager.logs(self._guest, self._process, stream="stderr")
        await self._handle(offset + 1, lambda: self._driver.exited(info.exit_code, stderr.decode("utf-8", "replace")))
        self._ended = info

    async def _handle(self, offset: int, meaning: Callable[[], Step], size: int = 0) -> None:
        async with self._lock:
            step = meaning()
            with contextlib.suppress(ProcessEnded):  # it does not read its input any more
                await self._send(step.lines)
            self._processed_to = offset
            if any(isinstance(event, AgentEnded) for event in step.events):
                self._turn_ended_at = offset
                self._pending = deque(one for one in self._pending if one[0].startswith(_PERSISTENT))
            await self._publish(step.events if offset > self._start_offset else (), offset, size)

    async def _act(self, act: Callable[[], Step], pending: str = "", when: Callable[[], bool] = lambda: True) -> None:
        """Run an action of the driver. With a `pending` key, the driver considers it done from here on.

        Lines that cannot be sent now are sent before the next action, and a retry of the same action then has nothing
        to do."""
        await self._masked(self._act_unmasked(act, pending, when))

    async def _act_unmasked(self, act: Callable[[], Step], pending: str, when: Callable[[], bool]) -> None:
        if pending in await self._send_pending():
            return
        async with self._exclusive(when):
            step = act()
            if pending:
                self._pending.append((pending, step))
                await self._send_pending_locked()
            else:
                await self._send(step.lines)
                await self._publish(step.events)

    async def _send_pending(self) -> set[str]:
        """Send all pending actions and return their keys."""
        if not self._pending:
            return set()
        async with self._exclusive(lambda: True):
            return await self._send_pending_locked()

    async def _send_pending_locked(self) -> set[str]:
        sent = set()
        while self._pending:
            pending, step = self._pending[0]
            await self._send(step.lines)
            await self._publish(step.events)
            sent.add(pending)
            self._pending.popleft()
        return sent

    async def _send_prompt(self, text: str, key: str, may_be_known: bool, unread: bool = False) -> _PromptResult | None:
        """Begin a turn. With `unread`, return None instead of waiting while there are unread events.

        `may_be_known`: the key may have been sent before."""
        await self._send_pending()
        async with self._exclusive(lambda: self._driver.ready or (unread and bool(self._unread))):
            if not self._driver.ready:
                return None
            unread_before = len(self._unread)
            lines = self._driver.prompt(key, text)
            at = await self._earlier_offset(key) if may_be_known else None
            if not await self._send(lines) and at is not None:
                return _PromptResult(unread_before, already_over=self._turn_ended_at > at)
            # The prompt was not recorded: if the inbox has it, our own attempt was interrupted and repeated.
            if at is not None:
                await self._prompt_log.record(key, self._processed_to)
            await self._publish(self._driver.prompt_sent(text))
            return _PromptResult(unread_before, already_over=False)

    async def _earlier_offset(self, key: str) -> int | None:
        """Return the output's offset when the prompt was first sent; None if it is sent for the first time now."""
        at = await self._prompt_log.offset_of(key)
        if at is not None and at <= self._processed_to:
            return at
        await self._prompt_log.record(key, self._processed_to)
        return None

    @asynccontextmanager
    async def _exclusive(self, when: Callable[[], bool]) -> AsyncIterator[None]:
        """Wait for a condition, and run the block exclusively and shielded from cancellation.

        A block that was cut in the middle would leave it unknown what the program received."""
        while True:
            await self._wait_until(when)
            async with self._lock:
                if when():  # another task may have been first
                    with anyio.CancelScope(shield=True):
                        yield
                    return

    async def _masked(self, work: Awaitable[T]) -> T:
        """Mask the errors of `work`: a guest knows its secrets and can put them into errors."""
        try:
            return await work
        except HiveyardError as error:
            failure = masked(error, self._mask)
        # Outside of the handler, otherwise Python would attach the original error as the context.
        raise failure

    async def _send(self, lines: Sequence[InputLine]) -> bool:
        """Send lines. Return whether any of them was new to the program's inbox."""
        new = [await self._manager.send(self._guest, self._process, line.key, line.data) for line in lines]
        return any(new)

    # --- the reader -------------------------------------------------------------------------------------------------

    async def _publish(self, events: Sequence[AgentEvent], offset: int | None = None, size: int = 0) -> None:
        """Add events, and wake tasks that wait for the reader or the driver."""
        async with self._changed:
            if events:
                self._unread.extend(_Unread(event) for event in events[:-1])
                self._unread.append(_Unread(events[-1], offset, size))
                self._unread_size += size
            self._changed.notify_all()

    async def _wait_for_reader(self) -> None:
        """Wait until there are few unread events. Does not block actions, because the reader may be the one that
        acts."""
        async with self._changed:
            while len(self._unread) > _MAX_UNREAD or self._unread_size > _LINE_LIMIT:
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

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            while True:
                self._check()
                if self._ended is not None:
                    raise ProcessEnded(f"{self._process} has ended and takes no more input")
                if self._processed_to >= self._start_offset and condition():
                    return
                await self._changed.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


@asynccontextmanager
async def open_conversation(
    guest: Guest,
    manager: ProcessManager,
    spec: ProcessSpec,
    driver: Driver,
    *,
    offset: int = 0,
    mask: Mask = Mask(()),  # noqa: B008 - it has no state
) -> AsyncIterator[Conversation]:
    """Open a conversation with a process that was started with an inbox. Leaving the block ends nothing in the guest.

    `events` begins at `offset` of the output, which is the `offset` of an earlier conversation."""
    conversation = Conversation(guest, manager, spec, driver, offset, mask)
    async with together() as group:
        group.start_soon(conversation._run)
        yield conversation
        group.cancel_scope.cancel()


def _key(kind: str, key: str | None) -> str:
    """Return a key of limited length: some programs use it as the id of an answer."""
    key = new_id() if key is None else key
    plain = len(key) <= _MAX_KEY and key.isprintable()
    return f"{kind}-{key if plain else hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _check_words(*words: object) -> None:
    """Raise BadInput for a text that cannot be sent to a program."""
    try:
        msgspec.json.encode(words)
    except UnicodeEncodeError as error:
        raise BadInput(f"a surrogate ({error.object[error.start]!r}) cannot be sent to a program") from error
