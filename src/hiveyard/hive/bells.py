"""Tell those who wait for a member's mailbox that they should look again."""

from __future__ import annotations

from weakref import WeakValueDictionary

import anyio


class Bells:
    """One event per session, which is replaced when it is set. Take it before looking, so that no ring is missed."""

    def __init__(self) -> None:
        self._waiting: WeakValueDictionary[str, anyio.Event] = WeakValueDictionary()

    def of(self, session: str) -> anyio.Event:
        """Return the event that the next ring sets."""
        return self._waiting.setdefault(session, anyio.Event())

    def ring(self, session: str) -> None:
        if (event := self._waiting.pop(session, None)) is not None:
            event.set()

    def ring_all(self) -> None:
        for session in list(self._waiting):
            self.ring(session)
