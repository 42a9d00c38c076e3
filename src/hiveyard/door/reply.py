"""An answer on its way to the guest, and the seam to where answers come from: a vendor, or a tape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from hiveyard.door.model_request import ModelRequest
from hiveyard.kit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """Status, the headers that a guest may see (lower case), and the body as it comes.

    `chunks` raises UpstreamFailed where the answer is cut.
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


class Passage:
    """How far a request has come: `sent` while a vendor may have it, and so may be paid for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: float | None = None

    @property
    def sent(self) -> bool:
        return self._left is not None

    @property
    def seconds(self) -> float:
        """How long a vendor may have been at it."""
        return 0.0 if self._left is None else self._clock.monotonic() - self._left

    def leave(self) -> None:
        self._left = self._clock.monotonic()

    def come_back(self) -> None:
        """The vendor did nothing for it."""
        self._left = None


class Answers(Protocol):
    """Where answers come from."""

    def ask(self, asked: ModelRequest, passage: Passage) -> AbstractAsyncContextManager[Reply]:
        """The answer to a request; leaving the block gives it up. `passage` tells how far it came. Raises KeyMissing,
        CredentialsError, UpstreamFailed or NotOnTape before there is an answer."""
