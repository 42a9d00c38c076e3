"""What one request may cost: a bound on bodies, and an end for work whose asker went away."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiveyard.core.errors import BadInput
from hiveyard.kit.group import together

T = TypeVar("T")
BODY_LIMIT = 64 << 20
"""Bytes of a request: the longest prompt, in the longest way to write it as JSON that anybody uses."""


LAST_SEQ = 2**63 - 1
"""The largest number that a database has for an event."""


class BoundedBodies:
    """Middleware that stops reading a body at the limit, where it is not the stdin of a command in a guest, which
    nobody holds. Raises BadInput in whoever reads it."""

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


async def while_wanted(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the asker hangs up first. The request's body is read already."""
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
        raise BadInput("the asker went away")
    return found[0]
