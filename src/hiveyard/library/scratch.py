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
        made = {name: self.room(machine) / name for name in names}
        try:
            for path in made.values():
                path.mkdir()
        except OSError as error:
            raise ProviderError(f"no directory can be made for it: {error.strerror}") from error
        return made

    def room(self, owner: str) -> Path:
        """The directory that all of its directories are in, closed to others of this host. Raises ProviderError."""
        if owner not in self._made:
            try:
                self._made[owner] = Path(tempfile.mkdtemp(prefix="hiveyard-"))
            except OSError as error:
                raise ProviderError(f"no directory can be made for it: {error.strerror}") from error
        return self._made[owner]

    def of(self, machine: str, name: str) -> Path | None:
        """One that was made."""
        path = self._made[machine] / name if machine in self._made else None
        return path if path is not None and path.is_dir() else None

    async def remove(self, machine: str) -> None:
        """Absent is a success. Raises ProviderError."""
        if scratch := self._made.get(machine):
            await removed(scratch)
            self._made.pop(machine, None)  # not before it is gone: who tries again has to find it


async def removed(directory: Path) -> None:
    """Absent is a success. Raises ProviderError."""
    try:
        await anyio.to_thread.run_sync(remove_tree, directory)
    except FileNotFoundError:
        return  # not even what it was in
    except OSError as error:
        raise ProviderError(f"the directory {directory} was not removed: {error.strerror}") from error
