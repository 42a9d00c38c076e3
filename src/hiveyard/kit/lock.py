"""A lock of a file for tasks as well as processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.kit import files

_LOOK = 0.05  # seconds


@asynccontextmanager
async def alone(path: Path) -> AsyncIterator[None]:
    """`files.locked`; waiting for it holds nobody else up and can be cancelled."""
    while True:
        lock = files.locked(path, wait=False)
        try:
            lock.__enter__()
            break
        except BlockingIOError:
            await anyio.sleep(_LOOK)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
