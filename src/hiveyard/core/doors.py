"""The seam to the doors: the connections from machines of this host to models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.kit.secret import Secret

OpenDoor = Callable[[str, Path, Secret], AbstractAsyncContextManager[object]]
"""Open a door for a machine while the block runs. Takes the machine's name, a host directory and the placeholder.

The door is a socket `door.sock` in that directory and accepts only the placeholder as a key. Raises DoorError,
CredentialsError."""


class Doors(Protocol):
    """Opens doors from machines of this host to models. The real keys never leave it."""

    def check(self, protocols: Sequence[str]) -> None:
        """Raise CredentialsError if none of these protocols can be served. An empty list is a success."""

    def check_agent(self, agent: str) -> None:
        """Raise BadInput if the configured account may not be used by this agent."""

    def serving(self, tell: Callable[[str, DoorEvent | Notice], None]) -> AbstractAsyncContextManager[OpenDoor]:
        """Open doors while the block runs; each door is closed before the block ends.

        `tell` is called on the event loop with a machine's name and an event of its door. The events contain no key."""
