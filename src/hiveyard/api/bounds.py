"""Limit the cost of one request: the size of its body, and work whose client has disconnected."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiveyard.core.errors import BadInput
from hiveyard.kit.group import together

T = TypeVar("T")
BODY_LIMIT = 64 << 20
"""Most bytes of a request: the longest prompt, in the longest JSON encoding in use."""

LAST_SEQ = 2**63 - 1
"""The largest sequence number of an event that the database can store."""


class BoundedBodies:
    """Middleware that stops reading a body at the limit. The stdin of a command in a guest has no limit, because it is
    never held in memory. Raises BadInput in the reader of the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_LIMIT and not scope["path"].endswith("/exec"):
                raise BadInput(f"the request has more than {BODY_LIMIT} bytes")
            return message

        await self._app(scope, bounded, send)


async def until_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled when the client disconnects first. The request's body must have
    been read."""
    found: list[T] = []
    async with together() as group:

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(gone)
        found.append(await work)
        group.cancel_scope.cancel()
    if not found:
        raise BadInput("the client disconnected")
    return found[0]
