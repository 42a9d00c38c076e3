"""Name an installation, so that it finds its own machines in a backend that others use, too."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hiveyard.kit import files
from hiveyard.kit.names import new_id


def installation(state: Path) -> str:
    """Return the name of the installation whose directory is `state`. It is created once, also for concurrent calls."""
    file = state / "installation"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    with files.locked(state / "installation.lock"):
        if not file.exists():
            files.write_atomic(file, new_id().encode())
    return file.read_text()
