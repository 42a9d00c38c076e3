"""The latest committed events, held once for all followers.

A follower keeps only its position. While its position is within the tail it takes from here; when it was too slow,
or starts further back, it reads from the database until it has caught up. So nothing grows with slow readers.
It belongs to the event loop's thread and must not know where events come from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

import anyio

from hiveyard.core.events import Event
from hiveyard.store.outbox import Appended


class Piece(NamedTuple):
    """Events that come next, and the position after them (further on when others were passed over)."""

    events: list[Event]
    position: int


class Tail:
    """Events with a sequence number greater than `floor`, all of them that are committed and published."""

    def __init__(self, floor: int, *, max_events: int = 8192, max_bytes: int = 32 << 20) -> None:
        self.floor = floor
        self._end = floor
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._held: list[Appended] = []
        self._size = 0
        self._forgotten: set[str] = set()
        self._growing: WeakValueDictionary[str | None, anyio.Event] = WeakValueDictionary()

    def publish(self, appended: Sequence[Appended], forgotten: Collection[str]) -> None:
        """Take in what a commit made durable, in the order of its numbers, and wake who waits for it."""
        touched = {one.event.session for one in appended}
        if appended:
            appended = _unbroken(appended)
            if appended[0].event.seq != self._end + 1:
                # A hole: another process wrote, a write was too large to be held, or PostgreSQL skipped a number. The
                # database knows what is in it.
                self._restart(appended[0].event.seq - 1)
                touched = set(self._growing)  # type: ignore[arg-type]
            self._held += appended
            self._size += sum(one.size for one in appended)
            self._end = appended[-1].event.seq
        if forgotten:
            self._keep([one for one in self._held if one.event.session not in forgotten])
            self._forgotten.update(forgotten)
            touched = touched | set(forgotten)
        self._trim()
        self._wake(touched)

    def after(self, position: int, session: str | None, limit: int) -> Piece | None:
        """At most `limit` events after a position (of one session); None when the tail does not reach back to it."""
        if position < self.floor:
            return None
        start = bisect_right(self._held, position, key=_seq)
        piece = self._held[start : start + limit]
        if not piece:
            return Piece([], max(position, self._end))
        chosen = [one.event for one in piece if session is None or one.event.session == session]
        return Piece(chosen, piece[-1].event.seq)

    def forgot(self, session: str | None) -> bool:
        """Whether the session was removed: its events are gone and no more will come. Ids are never used again."""
        return session in self._forgotten

    def growth(self, session: str | None) -> anyio.Event:
        """Set when events (of that session) are published. Ask for it in the same breath as `after`."""
        return self._growing.setdefault(session, anyio.Event())

    def _wake(self, touched: Collection[str | None]) -> None:
        for session in (*touched, None) if touched else ():
            if (event := self._growing.pop(session, None)) is not None:
                event.set()

    def _restart(self, floor: int) -> None:
        self._keep([])
        self.floor = self._end = floor

    def _keep(self, held: list[Appended]) -> None:
        self._held = held
        self._size = sum(one.size for one in held)

    def _trim(self) -> None:
        """Drop the older half when it is too much: rarely, so that the cost is spread over many events."""
        while self._held and (len(self._held) > self._max_events or self._size > self._max_bytes):
            cut = (len(self._held) + 1) // 2
            self.floor = self._held[cut - 1].event.seq
            self._keep(self._held[cut:])


def _unbroken(appended: Sequence[Appended]) -> Sequence[Appended]:
    """What comes after the last hole."""
    start = len(appended) - 1
    if _seq(appended[start]) - _seq(appended[0]) == start:
        return appended
    while start and _seq(appended[start - 1]) == _seq(appended[start]) - 1:
        start -= 1
    return appended[start:]


def _seq(one: Appended) -> int:
    return one.event.seq
