"""Hold the latest committed events in memory, once for all followers.

A follower keeps only its position. It reads from the tail while its position is within it. A follower that was too
slow, or starts earlier, reads from the database until it has caught up. So slow readers use no memory. The tail belongs
to the event loop's thread, and must not know where events come from.
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
    """The next events, and the position after them, which is greater if other sessions' events were skipped."""

    events: list[Event]
    position: int


class Tail:
    """All committed and published events with a sequence number greater than `floor`."""

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
        """Add what a commit made durable, in the order of its numbers, and wake the followers that wait for it."""
        touched = {one.event.session for one in appended}
        # The id of a removed session returns with its import.
        self._forgotten -= touched
        if appended:
            appended = _after_last_gap(appended)
            if appended[0].event.seq != self._end + 1:
                # A gap: another process wrote, a write was too large for memory, or PostgreSQL skipped a number.
                # Followers read the gap from the database.
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
        """Return at most `limit` events after a position (of one session); None if the position is before the tail."""
        if position < self.floor:
            return None
        start = bisect_right(self._held, position, key=_seq)
        piece = self._held[start : start + limit]
        if not piece:
            return Piece([], max(position, self._end))
        chosen = [one.event for one in piece if session is None or one.event.session == session]
        return Piece(chosen, piece[-1].event.seq)

    def forgot(self, session: str | None) -> bool:
        """Return whether the session was removed, and has no event since."""
        return session in self._forgotten

    def growth(self, session: str | None) -> anyio.Event:
        """Return an event that is set when events (of that session) are published.

        Call it directly after `after`, without waiting for anything in between."""
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
        """Drop the older half when the limits are exceeded: rarely, so that the cost is spread over many events."""
        while self._held and (len(self._held) > self._max_events or self._size > self._max_bytes):
            cut = (len(self._held) + 1) // 2
            self.floor = self._held[cut - 1].event.seq
            self._keep(self._held[cut:])


def _after_last_gap(appended: Sequence[Appended]) -> Sequence[Appended]:
    """Return the events after the last gap in the numbers."""
    start = len(appended) - 1
    if _seq(appended[start]) - _seq(appended[0]) == start:
        return appended
    while start and _seq(appended[start - 1]) == _seq(appended[start]) - 1:
        start -= 1
    return appended[start:]


def _seq(one: Appended) -> int:
    return one.event.seq
