"""Directories of this host that machines share and that go with them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import ProviderError
from hiveyard.kit.trees import remove_tree


class Scratch:
    """Remembers, for as long as it lives, which directory is which machine's."""

    def __init__(self) -> None:
        self._made: dict[str, Path] = {}

    def make(self, machine: str, names: Sequence[str]) -> dict[str, Path]:
        """A directory for each of `names`; none for no names. Raises ProviderError."""
        if not names:
            return {}
        try:
            scratch = self._made[machine] = Path(tempfile.mkdtemp(prefix="hiveyard-"))
            # Closed to others of this host; what the guest sees of it is open to its own users.
            made = {name: scratch / name for name in names}
            for path in made.values():
                path.mkdir()
        except OSError as error:
            raise ProviderError(f"no directory can be made for it: {error.strerror}") from error
        return made

    async def remove(self, machine: str) -> None:
        """Absent is a success. Raises ProviderError."""
        if scratch := self._made.pop(machine, None):
            try:
                await anyio.to_thread.run_sync(remove_tree, scratch)
            except OSError as error:
                raise ProviderError(f"its directory {scratch} was not removed: {error.strerror}") from error
