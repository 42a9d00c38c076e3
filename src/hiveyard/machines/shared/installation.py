"""The name by which an installation knows its own in a backend that others use too."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hiveyard.kit import files
from hiveyard.kit.names import new_id


def installation(state: Path) -> str:
    """The name of the installation whose directory is `state`; made once, also when several ask at the same time."""
    file = state / "installation"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    with files.locked(state / "installation.lock"):
        if not file.exists():
            files.write_atomic(file, new_id().encode())
    return file.read_text()
