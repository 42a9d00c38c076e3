"""One at a time, across tasks and processes; waiting can be cancelled, and the lock dies with its process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.kit import files


@asynccontextmanager
async def holding(path: Path) -> AsyncIterator[None]:
    pause = 0.002
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.locked(path, wait=False))
                break
            except BlockingIOError:
                await anyio.sleep(pause)
                pause = min(pause * 1.5, 0.2)
        yield
