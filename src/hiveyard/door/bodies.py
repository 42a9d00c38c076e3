"""Request bodies, bounded: each in size and time, and all of one door, and of all doors, together in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
from starlette.types import Receive

from hiveyard.door.quota import Quota
from hiveyard.door.settings import DoorSettings


class TooMuch(Exception):
    """A body is over a limit; `status` is the HTTP status that says which."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class HungUp(Exception):
    """The guest hung up before its request was whole."""


class Bodies:
    """What one door holds of its guests' requests; `room` is the bytes that all doors may hold."""

    def __init__(self, settings: DoorSettings, room: Quota) -> None:
        self._settings = settings
        self._room = room
        self._held = 0

    @asynccontextmanager
    async def held(self, receive: Receive, headers: Sequence[tuple[bytes, bytes]]) -> AsyncIterator[bytes]:
        """A request's body, counted as held for as long as the block lasts. Raises TooMuch or HungUp."""
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
                raise TooMuch(408, f"a body that took more than {self._settings.body_seconds:g} s to arrive")
            whole = bytes(body)
            body.clear()  # a body may be held for minutes, and once is enough
            yield whole
        finally:
            self._held -= held
            self._room.leave(held)

    def _take(self, size: int) -> None:
        if not self._room.take(size):
            together = self._settings.bodies_total_mib
            raise TooMuch(503, f"bodies of more than {together} MiB at the same time at all doors")
        self._held += size

    def _check_announced(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        length = int(next((value for name, value in headers if name == b"content-length"), b"0"))
        self._check(length)

    def _check(self, size: int) -> None:
        if size > self._settings.body_mib << 20:
            raise TooMuch(413, f"a body of more than {self._settings.body_mib} MiB")
        if self._held > self._settings.bodies_mib << 20:
            raise TooMuch(503, f"bodies of more than {self._settings.bodies_mib} MiB at the same time")


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUp
        more = message.get("more_body", False)
        yield message.get("body", b"")
