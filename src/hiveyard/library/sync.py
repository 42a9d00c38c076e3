"""The orchestrator without `await`, for scripts and notebooks: it runs an event loop in a thread of its own."""

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


def _blocking(
    method: Callable[Concatenate[Orchestrator, P], Awaitable[T]],
) -> Callable[Concatenate[SyncOrchestrator, P], T]:
    """Return the method as a blocking call."""

    def call(self: SyncOrchestrator, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.wait(partial(method, self.orchestrator, *args, **kwargs))

    update_wrapper(call, method)
    return call


class SyncOrchestrator:
    """An orchestrator whose calls return when they are done. Use it with `with`, in a notebook with an `ExitStack`.

    Ctrl-C cancels the call that it interrupts and waits until the call has cleaned up, so that no machine is left over.
    A second Ctrl-C does not wait. Events are delivered in the thread of the event loop."""

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

    boot_and_prepare = _blocking(Orchestrator.boot_and_prepare)
    fork = _blocking(Orchestrator.fork)
    snapshot = _blocking(Orchestrator.snapshot)
    remove_snapshot = _blocking(Orchestrator.remove_snapshot)
    start_session = _blocking(Orchestrator.start_session)
    processes = _blocking(Orchestrator.processes)
    logs = _blocking(Orchestrator.logs)
    stop = _blocking(Orchestrator.stop)
    terminate = _blocking(Orchestrator.terminate)

    def follow(self, machine: Machine, process: str, *, stream: str = "stdout", offset: int = 0) -> Iterator[bytes]:
        """Yield an output from `offset`, then live, until the process has ended."""
        return self.iterate(lambda: self.orchestrator.follow(machine, process, stream=stream, offset=offset))

    @contextmanager
    def converse(
        self, machine: Machine, turn: Turn, *, offset: int = 0, keep_on_error: bool = False
    ) -> Iterator[SyncConversation]:
        """Open a conversation with the agent. Leaving the block ends nothing."""

        async def held() -> AsyncGenerator[Conversation, None]:
            async with self.orchestrator.converse(machine, turn, offset=offset, keep_on_error=keep_on_error) as talk:
                yield talk

        with closing(self.iterate(held)) as holding:
            for conversation in holding:
                # The loop's second round closes the conversation.
                yield SyncConversation(self, conversation)

    def iterate(self, source: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """Yield the items of an asynchronous generator as they arrive.

        An item is requested only when the caller asks for it, so none is lost."""
        portal = self._running()
        sender, receiver = anyio.create_memory_object_stream[T]()
        request_sender, request_receiver = anyio.create_memory_object_stream[None]()

        async def read() -> None:
            pieces = source()
            async with sender, request_receiver, aclosing(pieces):
                async for _ in request_receiver:
                    try:
                        piece = await anext(pieces)
                    except StopAsyncIteration:
                        return
                    await sender.send(piece)

        # One task runs the generator from start to end, because its cancel scopes may not move to another task.
        future, ended = _start(portal, read)
        try:
            while (piece := self.wait(partial(_next, request_sender, receiver))) is not None:
                yield piece
            waiting.result(future)
        finally:
            future.cancel()
            if self._portal is not None:
                portal.call(receiver.close)
                portal.call(request_sender.close)
                waiting.result(ended)

    def wait(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` on the orchestrator's event loop and return its result.

        If it is interrupted, the work has ended when this raises, unless it is interrupted a second time."""
        future, ended = _start(self._running(), work)
        try:
            return waiting.result(future)
        except BaseException:
            if future.cancel():
                waiting.result(ended)
            raise

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("use a SyncOrchestrator inside its `with` block")
        return self._portal


class SyncConversation:
    """A Conversation whose calls return when they are done. Requests can be answered inside the loop over a turn's
    events."""

    def __init__(self, orchestrator: SyncOrchestrator, conversation: Conversation) -> None:
        self._orchestrator = orchestrator
        self._conversation = conversation

    @property
    def conversation(self) -> str | None:
        return self._conversation.conversation

    @property
    def ended(self) -> ProcessInfo | None:
        return self._conversation.ended

    @property
    def offset(self) -> int:
        return self._conversation.offset

    def events(self) -> Iterator[AgentEvent]:
        return self._orchestrator.iterate(self._conversation.events)

    def turn(self, text: str, *, key: str | None = None) -> Iterator[AgentEvent]:
        return self._orchestrator.iterate(partial(self._conversation.turn, text, key=key))

    def prompt(self, text: str, *, key: str | None = None) -> None:
        self._orchestrator.wait(partial(self._conversation.prompt, text, key=key))

    def steer(self, text: str, *, key: str | None = None) -> None:
        self._orchestrator.wait(partial(self._conversation.steer, text, key=key))

    def interrupt(self) -> None:
        self._orchestrator.wait(self._conversation.interrupt)

    def answer(self, request: str, answer: Answer) -> None:
        self._orchestrator.wait(partial(self._conversation.answer, request, answer))

    def choose(self, model: str) -> None:
        self._orchestrator.wait(partial(self._conversation.choose, model))

    def close(self) -> None:
        self._orchestrator.wait(self._conversation.close)


def _start(portal: BlockingPortal, work: Callable[[], Awaitable[T]]) -> tuple[Future[T], Future[None]]:
    """Start `work`; return a future of its result and a future of its end.

    A cancelled future is done at once, but its work continues for a while."""
    ended = Future[None]()

    async def run() -> T:
        try:
            return await work()
        finally:
            ended.set_result(None)

    return portal.start_task_soon(run), ended


async def _next(request_sender: ObjectSendStream[None], receiver: ObjectReceiveStream[T]) -> T | None:
    try:
        await request_sender.send(None)
        return await receiver.receive()
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        return None
