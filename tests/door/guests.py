"""Guests that send raw bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import SocketStream

from hiveyard.door.door import Door

from .house import PLACEHOLDER


@asynccontextmanager
async def raw(opened: Door) -> AsyncIterator[SocketStream]:
    async with await anyio.connect_unix(opened.path) as stream:
        yield stream


async def ask(opened: Door, text: bytes) -> bytes:
    """Send raw bytes; return what arrives until the door closes the connection."""
    got = b""
    async with raw(opened) as stream:
        with anyio.fail_after(20):
            try:
                await stream.send(text)
                async for chunk in stream:
                    got += chunk
            except (anyio.BrokenResourceError, ConnectionResetError):
                pass
    return got


def head(target: str, *more: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: door", f"x-api-key: {PLACEHOLDER}", "connection: close", *more]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
