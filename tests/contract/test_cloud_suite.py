"""Test that `pytest -m cloud` runs the same contract on the real service as on every provider."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .providers import MORPH_KEY

ROOT = Path(__file__).parents[2]


def collected(mark: str, **env: str) -> list[str]:
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", mark, str(Path(__file__).parent)]
    kept = {name: value for name, value in os.environ.items() if name not in (MORPH_KEY, "PYTEST_ADDOPTS")}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=kept | env)
    assert done.returncode in (0, 5), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_with_a_key_the_service_is_asked_all_that_its_fake_is() -> None:
    cloud = collected("cloud", **{MORPH_KEY: "morph_Zq8TestSecret"})
    faked = [line for line in collected("real") if "[morph" in line]
    assert len(cloud) > 100
    assert sorted(line.replace("morph-cloud", "morph") for line in cloud) == sorted(faked)


def test_without_one_and_unless_told_so_it_is_asked_nothing() -> None:
    assert not collected("cloud")
    assert not [line for line in collected("not cloud", **{MORPH_KEY: "morph_Zq8TestSecret"}) if "morph-cloud" in line]
