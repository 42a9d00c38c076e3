"""The same for scripts and notebooks that know no `await`: an event loop in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, aclosing, closing, contextmanager
from functools import partial, update_wrapper
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import anyio
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hiveyard.core.commands import ProcessInfo
from hiveyard.core.drivers import Answer
from hiveyard.core.events import AgentEvent
from hiveyard.core.machines import Machine
from hiveyard.core.ports import Turn
from hiveyard.kit import event_loop, waiting
from hiveyard.library.conversation import Conversation
from hiveyard.library.orchestrator import Orchestrator

P = ParamSpec("P")
T = TypeVar("T")


def _waited_for(
    method: Callable[Concatenate[Orchestrator, P], Awaitable[T]],
) -> Callable[Concatenate[SyncOrchestrator, P], T]:
    """The method, for callers who wait until it has ended."""

    def call(self: SyncOrchestrator, /, *args: P.args, **keywords: P.kwargs) -> T:
        return self.wait(partial(method, self.orchestrator, *args, **keywords))

    update_wrapper(call, method)
    return call


class SyncOrchestrator:
    """An orchestrator whose calls return when they are done. Used as `with`; in a notebook by an `ExitStack`.

    Ctrl-C cancels the call that it interrupts, which then leaves what a cancelled one leaves: no machine. That is
    waited for; a second Ctrl-C waits no longer. Events come in the thread of the event loop."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self.orchestrator = orchestrator
        self._portal: BlockingPortal | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self._portal = opening.enter_context(start_blocking_portal(backend_options=event_loop.OPTIONS))
            opening.enter_context(self._portal.wrap_async_context_manager(self.orchestrator))
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal = None
        self._open.__exit__(kind, raised, trace)

    boot_and_prepare = _waited_for(Orchestrator.boot_and_prepare)
    fork = _waited_for(Orchestrator.fork)
    snapshot = _waited_for(Orchestrator.snapshot)
    remove_snapshot = _waited_for(Orchestrator.remove_snapshot)
    start_session = _waited_for(Orchestrator.start_session)
    processes = _waited_for(Orchestrator.processes)
    logs = _waited_for(Orchestrator.logs)
    stop = _waited_for(Orchestrator.stop)
    terminate = _waited_for(Orchestrator.terminate)

    def follow(self, machine: Machine, process: str, *, stream: str = "stdout", offset: int = 0) -> Iterator[bytes]:
        """An output from `offset`, then live, until the process has ended."""
        return self.each(lambda: self.orchestrator.follow(machine, process, stream=stream, offset=offset))

    @contextmanager
    def converse(
        self, machine: Machine, turn: Turn, *, offset: int = 0, keep_on_error: bool = False
    ) -> Iterator[SyncConversation]:
        """A conversation with the agent; leaving the block ends nothing."""

        async def held() -> AsyncGenerator[Conversation, None]:
            async with self.orchestrator.converse(machine, turn, offset=offset, keep_on_error=keep_on_error) as talk:
                yield talk

        with closing(self.each(held)) as holding:
            for conversation in holding:
                # The loop's second round is what leaves it.
                yield SyncConversation(self, conversation)

    def each(self, source: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """What an asynchronous generator gives, as it comes. Each piece is taken from it when it is asked for: what is
        not asked for is not lost."""
        portal = self._running()
        sending, receiving = anyio.create_memory_object_stream[T]()
        asking, asked = anyio.create_memory_object_stream[None]()

        async def read() -> None:
            pieces = source()
            async with sending, asked, aclosing(pieces):
                async for _ in asked:
                    try:
                        piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    await sending.send(piece)

        # One task reads it from the beginning to the end: what it goes through may not change hands.
        reading, ended = _begun(portal, read)
        try:
            while (piece := self.wait(partial(_next, asking, receiving))) is not None:
                yield piece
            waiting.result(reading)
        finally:
            reading.cancel()
            if self._portal is not None:
                portal.call(receiving.close)
                portal.call(asking.close)
                waiting.result(ended)

    def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives, run on the event loop of the orchestrator. Interrupted, it has ended when this raises,
        unless somebody is interrupted a second time."""
        future, ended = _begun(self._running(), work)
        try:
            return waiting.result(future)
        except BaseException:
            if future.cancel():
                waiting.result(ended)
            raise

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("a SyncOrchestrator is used inside of its `with` block")
        return self._portal


class SyncConversation:
    """A Conversation whose calls return when they are done. What is asked in a turn can be answered from within the
    loop over its events."""

    def __init__(self, yard: SyncOrchestrator, conversation: Conversation) -> None:
        self._yard = yard
        self._talk = conversation

    @property
    def conversation(self) -> str | None:
        return self._talk.conversation

    @property
    def ended(self) -> ProcessInfo | None:
        return self._talk.ended

    @property
    def offset(self) -> int:
        return self._talk.offset

    def events(self) -> Iterator[AgentEvent]:
        return self._yard.each(self._talk.events)

    def turn(self, text: str, *, key: str | None = None) -> Iterator[AgentEvent]:
        return self._yard.each(partial(self._talk.turn, text, key=key))

    def prompt(self, text: str, *, key: str | None = None) -> None:
        self._yard.wait(partial(self._talk.prompt, text, key=key))

    def steer(self, text: str, *, key: str | None = None) -> None:
        self._yard.wait(partial(self._talk.steer, text, key=key))

    def interrupt(self) -> None:
        self._yard.wait(self._talk.interrupt)

    def answer(self, request: str, answer: Answer) -> None:
        self._yard.wait(partial(self._talk.answer, request, answer))

    def choose(self, model: str) -> None:
        self._yard.wait(partial(self._talk.choose, model))

    def close(self) -> None:
        self._yard.wait(self._talk.close)


def _begun(portal: BlockingPortal, work: Callable[[], Awaitable[T]]) -> tuple[Future[T], Future[None]]:
    """What `work` will give, and its end: a future that is cancelled is done at once, and its work goes on for a while
    after that."""
    ended = Future[None]()

    async def whole() -> T:
        try:
            return await work()
        finally:
            ended.set_result(None)

    return portal.start_task_soon(whole), ended


async def _next(asking: ObjectSendStream[None], receiving: ObjectReceiveStream[T]) -> T | None:
    try:
        await asking.send(None)
        return await receiving.receive()
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        return None
