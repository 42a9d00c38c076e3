"""Report how far a long step is: nothing for a short one, then a line now and then."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.kit.disk_usage import Measure
from hiveyard.kit.group import together

Report = Callable[[str], None]
FIRST = 2.0
"""Seconds until a step counts as long."""
_GROWTH, _LONGEST = 1.5, 15.0


@asynccontextmanager
async def heartbeat(report: Report, step: str, *, first: float = FIRST) -> AsyncIterator[Report]:
    """Yield a Report that passes lines on, and repeat the last line, or `step`, while the block runs and no line
    arrives.

    A repeated line has the seconds since it arrived."""
    line, since, pauses = step, anyio.current_time(), _pauses(first)
    due = since + next(pauses)

    def pass_on(text: str) -> None:
        nonlocal line, since, due
        line, since = text, anyio.current_time()
        # Longer than the pauses of `measured`, so that both never report the same step.
        due = since + _GROWTH * next(pauses)
        report(text)

    async def beat() -> None:
        nonlocal due
        while True:
            await anyio.sleep_until(due)
            if (now := anyio.current_time()) >= due:
                due = now + next(pauses)
                report(f"{line} ({now - since:.0f}s)")

    async with together() as group:
        group.start_soon(beat, name="heartbeat")
        yield pass_on
        group.cancel_scope.cancel()


@asynccontextmanager
async def measured(
    report: Report, step: str, amount: Callable[[], str], *, first: float = FIRST
) -> AsyncIterator[None]:
    """Report `step` with the `amount` done while the block runs, first after `first` seconds and then with growing
    pauses.

    An unchanged amount is not reported. `amount` runs in a thread; its OSErrors are ignored."""

    async def tick() -> None:
        last = ""
        for pause in _pauses(first):
            await anyio.sleep(pause)
            with contextlib.suppress(OSError):
                now = await anyio.to_thread.run_sync(amount, abandon_on_cancel=True)
                if now != last:
                    report(f"{step}: {now}")
                last = now

    async with together() as group:
        group.start_soon(tick, name=f"progress: {step}")
        yield
        group.cancel_scope.cancel()


def disk_usage(*paths: Path) -> str:
    """Return the bytes on disk below some paths, which may be absent, as text."""
    measure = Measure()
    return size(sum(measure.tree(path) for path in paths))


def size(count: int) -> str:
    """Return a number of bytes as text: `320 kB`, `12 MB`, `1.5 GB`."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


def _pauses(first: float) -> Iterator[float]:
    pause = first
    while True:
        yield pause
        pause = min(pause * _GROWTH, max(first, _LONGEST))
