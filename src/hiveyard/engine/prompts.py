"""The prompts of a session, each kept on the host until the agent took it."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from hiveyard.core.ports import Guest
from hiveyard.kit.files import write_atomic

GUEST_PROMPTS = "/session/prompts"


class Prompts:
    """Files `N.txt` in a directory that no guest sees."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def keep(self, number: int, text: str) -> None:
        """Keep the prompt of a turn, safe from a crash, before the turn is journaled."""
        await anyio.to_thread.run_sync(self.write, number, text)

    def write(self, number: int, text: str) -> None:
        self._root.mkdir(exist_ok=True, mode=0o700)
        write_atomic(self._file(number), text.encode(), mode=0o600)

    async def hand_over(self, guest: Guest, number: int) -> str:
        """Put the prompt of a turn into the guest; returns its path there."""
        path = f"{GUEST_PROMPTS}/turn-{number}.txt"
        data = await anyio.to_thread.run_sync(self._file(number).read_bytes)
        await guest.write_atomic(path, data, mode=0o644)
        return path

    def _file(self, number: int) -> Path:
        return self._root / f"{number}.txt"
