"""Answer a request that runs a command in a guest. The request's body is the command's stdin; while it is sent, the
answer carries the command's output in frames (engine/access/exec_channel.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hiveyard.core.commands import Command
from hiveyard.core.ports import Guest
from hiveyard.engine.access import exec_channel
from hiveyard.kit.group import together

MEDIA = "application/vnd.hiveyard.frames"


class Channel(Response):
    """An answer that runs a command. `begun` is the part of the request's body that the route has read, and `more` is
    whether the body continues. When the client disconnects, the command is killed."""

    media_type = MEDIA

    def __init__(
        self, guests: AbstractAsyncContextManager[Guest], command: Command, begun: bytes = b"", *, more: bool = True
    ) -> None:
        super().__init__()
        self._begun = begun
        self._more = more
        self._guests = guests
        self._command = command

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", MEDIA.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def give(frame: bytes) -> None:
            await send({"type": "http.response.body", "body": frame, "more_body": True})

        async with together() as group:

            async def stdin() -> AsyncIterator[bytes]:
                more = self._more
                if self._begun:
                    yield self._begun
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        group.cancel_scope.cancel()
                        return
                    more = message.get("more_body", False)
                    if data := message.get("body", b""):
                        yield data
                group.start_soon(gone)

            async def gone() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            await exec_channel.run(self._guests, self._command, stdin(), give)
            group.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})
