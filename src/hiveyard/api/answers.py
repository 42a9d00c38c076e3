"""Read request bodies and write answers, in the same way for all routes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from hiveyard.core.errors import BadInput
from hiveyard.engine.event_log import Listing


async def body(request: Request) -> object:
    """Return a JSON body as plain data. Raises BadInput."""
    try:
        found: object = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request is not JSON: {error}") from error
    return found


SEQ = "Hiveyard-Seq"
"""The header of lists: the number of the last event that they are based on."""


def answer(body: object, status: int = 200) -> Response:
    """Return a JSON answer. A list of the journal has its sequence number in a header."""
    if isinstance(body, Listing):
        return Response(msgspec.json.encode(list(body)), status, {SEQ: str(body.seq)}, media_type="application/json")
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def stream(lines: AsyncGenerator[str, None]) -> StreamingResponse:
    """Return an answer of server-sent events."""
    return StreamingResponse(_closed(lines), media_type="text/event-stream")


async def _closed(lines: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Pass lines on, and close their source at once when the client disconnects, not when it is collected."""
    async with aclosing(lines) as source:
        async for line in source:
            yield line
