"""Removing trees that somebody else filled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove a tree, also when its owner took the right to write from its directories. Symlinks are not followed."""
    for directory, names, _ in os.walk(path):
        for name in names:
            below = Path(directory, name)
            if not below.is_symlink() and not os.access(below, os.R_OK | os.W_OK | os.X_OK):
                below.chmod(0o700)
    shutil.rmtree(path)
