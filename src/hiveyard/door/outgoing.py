"""The way back to the guest, who may leave unread what is sent."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from starlette.types import Message, Send


class Stalled(Exception):
    """The guest leaves its answer unread."""


class Outgoing:
    """Knows whether an answer has begun, and raises Stalled when the guest takes nothing for `stall` seconds."""

    def __init__(self, send: Send, saw: Callable[[], None], stall: float) -> None:
        self.begun = False
        self._send = send
        self._saw = saw
        self._stall = stall

    async def __call__(self, message: Message) -> None:
        self.begun = True
        self._saw()
        with anyio.move_on_after(self._stall) as deadline:
            await self._send(message)
        if deadline.cancelled_caught:
            raise Stalled
