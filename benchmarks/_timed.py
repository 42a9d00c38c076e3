"""One thing done again and again, each time measured; what fails is counted and told."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks._figures import Figure, Figures
from hiveyard.core.errors import HiveyardError


def tell(line: str) -> None:
    """For people who wait; stdout is for figures."""
    print(line, file=sys.stderr, flush=True)


@dataclass(slots=True, eq=False)
class Timed:
    """Durations of one thing in seconds."""

    name: str
    work: Callable[[], Awaitable[object]] | None = None
    seconds: list[float] = field(default_factory=list)
    failures: int = 0

    async def once(self) -> None:
        """Do `work`, measured."""
        assert self.work is not None
        await self.of(self.work)

    async def of(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do something else that counts as this, measured."""
        begun = time.perf_counter()
        try:
            await work()
        except HiveyardError as error:
            tell(f"{self.name}: {error.message}")
            self.failures += 1
        else:
            self.seconds.append(time.perf_counter() - begun)

    def show(self, figures: Figures, *, aim: str = "") -> Figure:
        return figures.times(self.name, self.seconds, failures=self.failures, aim=aim)
