"""Temporary host directories that are shared with machines and removed with them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import ProviderError
from hiveyard.kit.trees import remove_tree


class Scratch:
    """Makes the directories and remembers which machine each belongs to, while this object exists."""

    def __init__(self) -> None:
        self._directories: dict[str, Path] = {}

    def make(self, machine: str, names: Sequence[str]) -> dict[str, Path]:
        """Make a directory for each of `names`, none if `names` is empty. Raises ProviderError."""
        if not names:
            return {}
        paths = {name: self.directory(machine) / name for name in names}
        try:
            for path in paths.values():
                path.mkdir()
        except OSError as error:
            raise ProviderError(f"cannot make a temporary directory: {error.strerror}") from error
        return paths

    def directory(self, machine: str) -> Path:
        """Return the machine's private parent directory, and make it if needed. Raises ProviderError."""
        if machine not in self._directories:
            try:
                self._directories[machine] = Path(tempfile.mkdtemp(prefix="hiveyard-"))
            except OSError as error:
                raise ProviderError(f"cannot make a temporary directory: {error.strerror}") from error
        return self._directories[machine]

    def path(self, machine: str, name: str) -> Path | None:
        """Return a directory that was made, or None."""
        path = self._directories[machine] / name if machine in self._directories else None
        return path if path is not None and path.is_dir() else None

    async def remove(self, machine: str) -> None:
        """Remove a machine's directories. Absent is a success. Raises ProviderError."""
        if directory := self._directories.get(machine):
            await remove_directory(directory)
            self._directories.pop(machine, None)  # only after the removal, so that it can be retried


async def remove_directory(directory: Path) -> None:
    """Remove a directory with its content. Absent is a success. Raises ProviderError."""
    try:
        await anyio.to_thread.run_sync(remove_tree, directory)
    except FileNotFoundError:
        return  # its parent is absent, too
    except OSError as error:
        raise ProviderError(f"the directory {directory} was not removed: {error.strerror}") from error
