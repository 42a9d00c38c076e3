"""A clock for tests."""

from __future__ import annotations

import anyio.lowlevel


class ManualClock:
    """A clock that stands still until a test sets `time`, or until somebody sleeps on it, which takes no time."""

    def __init__(self, time: float = 1_000_000_000.0) -> None:
        self.time = time

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await anyio.lowlevel.checkpoint()
