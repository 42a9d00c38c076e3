"""Read request bodies within limits: the size and time of each, and the total memory of one door and of all doors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from starlette.types import Receive

from hiveyard.door.quota import Quota
from hiveyard.door.settings import DoorSettings


class TooMuch(Exception):
    """A body exceeds a limit. `status` is the HTTP status for that limit."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HungUp(Exception):
    """The guest closed the connection before its request was complete."""


class Bodies:
    """The request bodies that one door holds. `quota` is the number of bytes that all doors may hold."""

    def __init__(self, settings: DoorSettings, quota: Quota) -> None:
        self._settings = settings
        self._quota = quota
        self._held = 0

    @asynccontextmanager
    async def held(self, receive: Receive, headers: Sequence[tuple[bytes, bytes]]) -> AsyncIterator[bytes]:
        """Yield a request's body, which counts as held until the block ends. Raises TooMuch or HungUp."""
        self._check_announced(headers)
        body = bytearray()
        held = 0
        try:
            with anyio.move_on_after(self._settings.body_seconds) as deadline:
                async for chunk in _chunks(receive):
                    self._take(len(chunk))
                    held += len(chunk)
                    body += chunk
                    self._check(len(body))
            if deadline.cancelled_caught:
                raise TooMuch(408, f"the body took more than {self._settings.body_seconds:g} s to arrive")
            complete = bytes(body)
            body.clear()  # a body may be held for minutes: keep one copy
            yield complete
        finally:
            self._held -= held
            self._quota.release(held)

    def _take(self, size: int) -> None:
        if not self._quota.take(size):
            together = self._settings.bodies_total_mib
            raise TooMuch(503, f"all doors already hold request bodies of {together} MiB, the limit")
        self._held += size

    def _check_announced(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        length = int(next((value for name, value in headers if name == b"content-length"), b"0"))
        self._check(length)

    def _check(self, size: int) -> None:
        if size > self._settings.body_mib << 20:
            raise TooMuch(413, f"the body exceeds {self._settings.body_mib} MiB")
        if self._held > self._settings.bodies_mib << 20:
            raise TooMuch(503, f"request bodies held at the same time exceed {self._settings.bodies_mib} MiB")


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        more = message.get("more_body", False)
        yield message.get("body", b"")
