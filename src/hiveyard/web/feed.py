"""Render the changes of the lists once for all pages that are open."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import NamedTuple

import anyio

from hiveyard.core.events import Event
from hiveyard.engine.engine import Engine

log = logging.getLogger(__name__)
KEPT = 500
"""Messages that are kept for pages that are behind. A page that is further behind loads its list again."""
PAUSE = 0.1
"""Seconds in which changes are collected into one message."""
_QUIET = ("agent.usage", "agent.output", "agent.thinking", "progress", "phase.ended", "model.called")
"""Types of events that change no list by themselves, or too often."""
_COUNTED = ("agent.asked", "ask.", "message.", "member.", "turn.ended", "task.", "session.")
"""Beginnings of types after which something else may wait for the person."""


class Message(NamedTuple):
    """A change as JSON, with its place in the feed. It stands for all events up to `seq`."""

    place: int
    seq: int
    data: str


Render = Callable[[Collection[str], bool], Awaitable[str]]
"""Renders a message about sessions; the second argument says whether what waits for the person may have changed."""


class Feed:
    """The changes of all tasks and sessions. It follows the journal in one place, whatever the number of pages.

    A message has the state of what changed, so a page may get one twice. A removal is a message of its own, because the
    journal forgets the events of what is removed."""

    def __init__(self, engine: Engine, render: Render, seq: int) -> None:
        self._engine = engine
        self._render = render
        self._messages: deque[Message] = deque()
        self._places = 0
        self._floor = self.seq = seq
        self._grown = anyio.Event()
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Follow the journal for as long as the page is served."""
        async with aclosing(self._engine.history.follow(None, after=self._floor)) as pages:
            async for events in pages:
                if touched := _touched(events):
                    await self.tell(touched, events[-1].seq, counts=_counts(events))
                await anyio.sleep(PAUSE)

    async def tell(self, sessions: Collection[str], seq: int | None = None, *, counts: bool = True) -> None:
        """Add a message about sessions that changed or were removed."""
        async with self._lock:  # a message is never older than the one before it
            try:
                data = await self._render(sessions, counts)
            except Exception:
                log.exception("a change could not be shown on the page: %s", sorted(sessions))
                return
            self._places, self.seq = self._places + 1, max(self.seq, seq or 0)
            self._messages.append(Message(self._places, self.seq, data))
            if len(self._messages) > KEPT:
                self._floor = self._messages.popleft().seq
            self._grown.set()
            self._grown = anyio.Event()

    async def messages(self, after: int) -> AsyncGenerator[Message | None, None]:
        """Yield the changes since an event as they come, or None for a reader that is too far behind."""
        place = next((one.place - 1 for one in self._messages if one.seq >= after), self._places)
        if after < self._floor:
            yield None
        while True:
            if self._messages and place < self._messages[0].place - 1:
                yield None
                place = self._places
            grown = self._grown
            for message in [one for one in self._messages if one.place > place]:
                place = message.place
                yield message
            if grown is self._grown:
                await grown.wait()


def _touched(events: Collection[Event]) -> set[str]:
    return {event.session for event in events if event.body.type not in _QUIET}


def _counts(events: Collection[Event]) -> bool:
    return any(event.body.type.startswith(_COUNTED) for event in events)
