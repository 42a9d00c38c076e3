"""The abilities of the file system below a directory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hiveyard.kit.copying import share_content


def shares_blocks(directory: Path) -> bool:
    with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as two:
        one.write(b"x" * 4096)
        one.flush()
        return share_content(one.fileno(), two.fileno())
