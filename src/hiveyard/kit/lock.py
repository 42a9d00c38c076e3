"""A file lock between tasks as well as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.kit import files

# A lock that is free again soon is taken soon, and a long wait costs little.
_FIRST_PAUSE, _LONGEST_PAUSE, _GROWTH = 0.002, 0.2, 1.5


@asynccontextmanager
async def file_lock(path: Path) -> AsyncIterator[None]:
    """Hold `files.locked` while the block runs. Waiting for the lock blocks no other task and can be cancelled."""
    pause = _FIRST_PAUSE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(files.locked(path, wait=False))
                break
            except BlockingIOError:
                await anyio.sleep(pause)
                pause = min(pause * _GROWTH, _LONGEST_PAUSE)
        yield
