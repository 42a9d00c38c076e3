"""How much a guest may make the journal say: facts that it can provoke at will are told at a bounded rate."""

from __future__ import annotations

from hiveyard.kit.clock import Clock


class EventQuota:
    """A bucket of `most` facts that fills again by `per_second`. `left_out` counts what was not told since."""

    def __init__(self, clock: Clock, *, most: int = 30, per_second: float = 0.2) -> None:
        self._clock = clock
        self._most = float(most)
        self._per_second = per_second
        self._level = self._most
        self._at = clock.monotonic()
        self.left_out = 0

    def take(self) -> bool:
        """Whether one more may be told."""
        now = self._clock.monotonic()
        self._level = min(self._most, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            self.left_out += 1
            return False
        self._level -= 1
        return True

    def omitted(self) -> str:
        """A note of what was left out before, once."""
        count, self.left_out = self.left_out, 0
        return f" ({count} more like this were not written down)" if count else ""
