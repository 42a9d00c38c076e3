"""Define an answer, the protocol of its sources (the vendors and tapes), and its sender to the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import anyio
from starlette.types import Message, Send

from hiveyard.door.model_request import ModelRequest
from hiveyard.kit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: status, the headers that a guest may see (lower case), and the chunks of the body.

    `chunks` raises UpstreamFailed if the answer is cut.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: AsyncIterator[bytes]
    source: Literal["upstream", "tape"]

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    @property
    def streamed(self) -> bool:
        return self.header("content-type").lower().startswith("text/event-stream")


class Progress:
    """The progress of a request. `sent` is true while a vendor may have it, and may charge for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent_at: float | None = None

    @property
    def sent(self) -> bool:
        return self._sent_at is not None

    @property
    def seconds(self) -> float:
        """Return how long a vendor may have been working on the request."""
        return 0.0 if self._sent_at is None else self._clock.monotonic() - self._sent_at

    def mark_sent(self) -> None:
        self._sent_at = self._clock.monotonic()

    def mark_unsent(self) -> None:
        """Record that the vendor did not process the request."""
        self._sent_at = None


class Answers(Protocol):
    """A source of answers."""

    def ask(self, asked: ModelRequest, progress: Progress) -> AbstractAsyncContextManager[Reply]:
        """Return the answer to a request; leaving the block cancels it. `progress` is updated meanwhile.

        Raises KeyMissing, CredentialsError, UpstreamFailed or NotOnTape if there is no answer."""


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
