"""When prompts were told: whoever tries one again after a crash has to know whether its turn is over."""

from __future__ import annotations

import contextlib
import hashlib

from hiveyard.core.errors import GuestFileNotFound, GuestFileTooLarge
from hiveyard.core.ports import Guest

_PLACE = "/session/told"
_DIGITS = 18


class PromptLog:
    """Of each prompt with a key, where the output of its process stood when it was told. It is kept in the guest,
    beside the process."""

    def __init__(self, guest: Guest, process: str) -> None:
        self._guest = guest
        self._place = f"{_PLACE}/{process}"

    async def at(self, key: str) -> int | None:
        """None for one of which nothing is known."""
        with contextlib.suppress(GuestFileNotFound, GuestFileTooLarge):
            said = await self._guest.read(self._path(key), limit=_DIGITS)
            return int(said) if said.isdigit() else None
        return None

    async def note(self, key: str, offset: int) -> None:
        await self._guest.write_atomic(self._path(key), str(offset).encode())

    def _path(self, key: str) -> str:
        return f"{self._place}/{hashlib.sha256(key.encode()).hexdigest()}"
