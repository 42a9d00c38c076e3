"""Quotas: units that all doors of this process share, and the rate of events that a guest can provoke at will."""

from __future__ import annotations

from hiveyard.kit.clock import Clock


class Quota:
    """A quota of `most` units shared by all doors, of which `taken` are in use."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def take(self, number: int = 1) -> bool:
        """Take units. Return False, and take none, if fewer are left."""
        if self.taken + number > self.most:
            return False
        self.taken += number
        return True

    def release(self, number: int = 1) -> None:
        self.taken -= number


class EventQuota:
    """A token bucket of `most` events that refills at `per_second`. `skipped` counts the refused events since the last
    one with a note."""

    def __init__(self, clock: Clock, *, most: int = 30, per_second: float = 0.2) -> None:
        self._clock = clock
        self._most = float(most)
        self._per_second = per_second
        self._level = self._most
        self._at = clock.monotonic()
        self.skipped = 0

    def take(self) -> bool:
        """Take one event from the bucket. Return False if it is empty."""
        now = self._clock.monotonic()
        self._level = min(self._most, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            self.skipped += 1
            return False
        self._level -= 1
        return True

    def note_skipped(self) -> str:
        """Return a note about the skipped events, and reset their count."""
        count, self.skipped = self.skipped, 0
        return f" ({count} more like this were not recorded)" if count else ""
