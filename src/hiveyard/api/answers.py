"""Reading requests and writing answers, the same for all routes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from hiveyard.core.errors import BadInput


async def body(request: Request) -> object:
    """A body as plain data. Raises BadInput."""
    try:
        found: object = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request is not JSON: {error}") from error
    return found


def answer(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def stream(lines: AsyncGenerator[str, None]) -> StreamingResponse:
    """Server-sent events."""
    return StreamingResponse(_closed(lines), media_type="text/event-stream")


async def _closed(lines: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Close the source when the client goes away, at once and not when the collector gets to it."""
    async with aclosing(lines) as source:
        async for line in source:
            yield line
