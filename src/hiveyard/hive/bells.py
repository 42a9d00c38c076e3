"""Tell those who wait for a member's mailbox that they should look again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from hiveyard.kit.clock import Clock


async def wait_for(event: anyio.Event, clock: Clock, seconds: float | None) -> None:
    """Wait for an event, at most for some seconds."""
    async with anyio.create_task_group() as group:
        if seconds is not None:
            group.start_soon(_set_after, event, clock, seconds)
        await event.wait()
        group.cancel_scope.cancel()


async def _set_after(event: anyio.Event, clock: Clock, seconds: float) -> None:
    await clock.sleep(seconds)
    event.set()


class Bells:
    """The events that those who wait for a session listen to."""

    def __init__(self) -> None:
        self._listening: defaultdict[str, set[anyio.Event]] = defaultdict(set)

    @contextmanager
    def listening(self, session: str) -> Iterator[anyio.Event]:
        """Yield an event that is set when the bell rings. Look inside the block, then wait: so no ring is missed."""
        bell = anyio.Event()
        self._listening[session].add(bell)
        try:
            yield bell
        finally:
            self._listening[session].discard(bell)
            if not self._listening[session]:
                del self._listening[session]

    def ring(self, session: str) -> None:
        for bell in self._listening.get(session, ()):
            bell.set()

    def count(self, session: str) -> int:
        """Return how many listen."""
        return len(self._listening.get(session, ()))
