"""Send answers to the guest, with a timeout for a guest that does not read."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from starlette.types import Message, Send


class Stalled(Exception):
    """The guest does not read its answer."""


class Outgoing:
    """The sender of an answer. `started` is whether it has begun. Raises Stalled if the guest reads nothing for `stall`
    seconds."""

    def __init__(self, send: Send, touch: Callable[[], None], stall: float) -> None:
        self.started = False
        self._send = send
        self._touch = touch
        self._stall = stall

    async def __call__(self, message: Message) -> None:
        self.started = True
        self._touch()
        with anyio.move_on_after(self._stall) as deadline:
            await self._send(message)
        if deadline.cancelled_caught:
            raise Stalled
