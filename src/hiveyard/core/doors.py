"""The seam to what gives machines of this host their ways to models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.kit.secret import Secret

OpenDoor = Callable[[str, Path, Secret], AbstractAsyncContextManager[object]]
"""A machine's name, a directory of this host, the placeholder: a door at `door.sock` in that directory, which takes
the placeholder and no other key, open for as long as the block lasts. Raises DoorError, CredentialsError."""


class Doors(Protocol):
    """What gives machines of this host their ways to models; the real keys stay with it."""

    def check(self, protocols: Sequence[str]) -> None:
        """Raises CredentialsError when it could answer none of these protocols; none asked for is a success."""

    def check_agent(self, agent: str) -> None:
        """Raises BadInput when models may not be paid for on behalf of the agent of that name."""

    def serving(self, tell: Callable[[str, DoorEvent | Notice], None]) -> AbstractAsyncContextManager[OpenDoor]:
        """Opens doors for as long as the block lasts, each of them closed before its end. `tell` is called on the event
        loop with the name of a machine and what happened at its door; no key is in that."""
