"""What changes on the lists, rendered once for all pages that are open."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import NamedTuple

import anyio

from hiveyard.core.events import Event
from hiveyard.engine.engine import Engine

KEPT = 500
"""Messages that are kept for pages that are behind. A page that is further behind loads its list again."""
PAUSE = 0.1
"""Seconds in which changes are collected into one message."""
_QUIET = ("agent.usage", "agent.output", "agent.thinking", "progress", "phase.ended", "model.called")
"""Types of events that change no list by themselves, or too often."""


class Message(NamedTuple):
    """A change as JSON. It stands for all events up to `seq`."""

    seq: int
    data: str


Render = Callable[[Collection[str]], Awaitable[str]]


class Feed:
    """The changes of all tasks and sessions. It follows the journal in one place, whatever the number of pages."""

    def __init__(self, engine: Engine, render: Render, seq: int) -> None:
        self._engine = engine
        self._render = render
        self._messages: deque[Message] = deque()
        self._floor = seq
        self._grown = anyio.Event()

    @property
    def seq(self) -> int:
        """The number of the last event that the messages stand for."""
        return self._messages[-1].seq if self._messages else self._floor

    async def run(self) -> None:
        """Follow the journal for as long as the page is served."""
        async with aclosing(self._engine.history.follow(None, after=self._floor)) as pages:
            async for events in pages:
                if touched := _touched(events):
                    self._add(Message(events[-1].seq, await self._render(touched)))
                await anyio.sleep(PAUSE)

    async def messages(self, after: int) -> AsyncGenerator[Message | None, None]:
        """Yield the changes after an event as they come, or None for a reader that is too far behind."""
        while True:
            if after < self._floor:
                yield None
                after = self.seq
            grown = self._grown
            for message in [one for one in self._messages if one.seq > after]:
                after = message.seq
                yield message
            if grown is self._grown:
                await grown.wait()

    def _add(self, message: Message) -> None:
        self._messages.append(message)
        if len(self._messages) > KEPT:
            self._floor = self._messages.popleft().seq
        self._grown.set()
        self._grown = anyio.Event()


def _touched(events: Collection[Event]) -> set[str]:
    return {event.session for event in events if event.session and event.body.type not in _QUIET}
