"""Store the prompts of a session on the host until the agent has taken them."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import SessionDamaged
from hiveyard.core.ports import Guest
from hiveyard.engine.run_spec import PROMPT_LIMIT
from hiveyard.kit.files import write_atomic

GUEST_PROMPTS = "/session/prompts"


class Prompts:
    """The prompts as files `N.txt` in a directory that no guest sees."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def keep(self, number: int, text: str) -> None:
        """Store the prompt of a turn durably, before the turn is journaled."""
        await anyio.to_thread.run_sync(self.write, number, text)

    def write(self, number: int, text: str) -> None:
        self._root.mkdir(exist_ok=True, mode=0o700)
        write_atomic(self._file(number), text.encode(), mode=0o600)

    async def deliver(self, guest: Guest, number: int) -> str:
        """Write the prompt of a turn into the guest; return its path there. Raises SessionDamaged if it is lost."""
        path = f"{GUEST_PROMPTS}/turn-{number}.txt"
        data = await anyio.to_thread.run_sync(self.read, number)
        await guest.write_atomic(path, data, mode=0o644)
        return path

    def read(self, number: int) -> bytes:
        """Return the prompt of a turn. Raises SessionDamaged if it is lost."""
        file = self._file(number)
        try:
            with file.open("rb") as stored:
                data = stored.read(PROMPT_LIMIT + 1)
        except OSError as error:
            raise _lost(number, f"{file}: {error.strerror or error}") from error
        if len(data) > PROMPT_LIMIT:
            raise _lost(number, f"{file} is longer than any prompt")
        return data

    def _file(self, number: int) -> Path:
        return self._root / f"{number}.txt"


def _lost(number: int, why: str) -> SessionDamaged:
    return SessionDamaged(f"the prompt of turn {number} is lost: {why}", hint="send it again: hv send")
