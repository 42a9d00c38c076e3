"""A file lock between tasks as well as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.kit import files

_POLL = 0.05  # seconds


@asynccontextmanager
async def file_lock(path: Path) -> AsyncIterator[None]:
    """Hold `files.locked` while the block runs. Waiting for the lock blocks no other task and can be cancelled."""
    while True:
        lock = files.locked(path, wait=False)
        try:
            lock.__enter__()
            break
        except BlockingIOError:
            await anyio.sleep(_POLL)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
