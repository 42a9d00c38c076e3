"""A Python program that takes its own rights away first, and what it needs for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def nobody(script: str, place: str) -> subprocess.CompletedProcess[str]:
    """Run a script that becomes somebody else, with a directory where that one may write. Skips where we are not
    root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody else")
    Path(place).chmod(0o777)
    return subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True)
