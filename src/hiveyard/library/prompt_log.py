"""A record of sent prompts. A caller that repeats a prompt after a crash must know whether its turn is over."""

from __future__ import annotations

import contextlib
import hashlib

from hiveyard.core.errors import GuestFileNotFound, GuestFileTooLarge
from hiveyard.core.ports import Guest

_PLACE = "/session/told"
_DIGITS = 18


class PromptLog:
    """For each prompt with a key, the offset of its process's output when it was sent.

    It is kept in the guest, next to the process."""

    def __init__(self, guest: Guest, process: str) -> None:
        self._guest = guest
        self._directory = f"{_PLACE}/{process}"

    async def offset_of(self, key: str) -> int | None:
        """Return the recorded offset of a prompt, or None."""
        with contextlib.suppress(GuestFileNotFound, GuestFileTooLarge):
            digits = await self._guest.read(self._path(key), limit=_DIGITS)
            return int(digits) if digits.isdigit() else None
        return None

    async def record(self, key: str, offset: int) -> None:
        await self._guest.write_atomic(self._path(key), str(offset).encode())

    def _path(self, key: str) -> str:
        return f"{self._directory}/{hashlib.sha256(key.encode()).hexdigest()}"
