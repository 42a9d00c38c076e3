"""The demo on a host that cannot run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_missing_programs_are_reported_before_an_image_is_built(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": str(tmp_path), "HIVEYARD_HOME": str(tmp_path), "HIVEYARD_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "demo"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("error: qemu-img is not installed\n")
