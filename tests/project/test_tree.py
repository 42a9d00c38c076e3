"""Checks of the source tree: format, lint, types, import contracts, and words that must not appear in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hiveyard.paths import default_paths

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent

# In pieces, so that this file does not contain them.
REGISTRIES = ("python" + "hosted", "[.]npm" + "js", "pypi[.]" + "org", "(deb|security)[.]debian" + "[.]org")
UNWANTED = {
    "a package registry's host": "|".join(REGISTRIES),
    "a path of one machine": "/" + r"work/|/" + r"home/(?!agent\b|me\b)\w+/",
    "a mark of an unfinished merge": r"^(<{7} |>{7} )",
}


def tool(*words: str) -> None:
    """Run one of the project's tools over the tree; its output is the failure."""
    done = subprocess.run([str(TOOLS / words[0]), *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    return [ROOT / os.fsdecode(name) for name in listed.split(b"\0") if name]


def test_the_code_is_formatted() -> None:
    tool("ruff", "format", "--check", "--quiet")


def test_the_linter_finds_nothing() -> None:
    tool("ruff", "check", "--quiet")


def test_the_types_are_correct() -> None:
    # The cache outlives the checkout: mypy compares contents, and checks only what changed.
    tool("mypy", "--cache-dir", str(default_paths().cache / "test-mypy"))


def test_the_import_contracts_hold() -> None:
    tool("lint-imports")


@pytest.mark.parametrize("what", UNWANTED)
def test_no_file_contains(what: str) -> None:
    pattern = re.compile(UNWANTED[what].encode(), re.MULTILINE)
    for path in tracked():
        if path.is_file() and not path.is_symlink():
            found = pattern.search(path.read_bytes())
            assert found is None, f"{path.relative_to(ROOT)} names {what}: {found.group().decode()}"


def test_every_dependency_is_locked_with_its_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], "hatchling", "editables"]
    locked = (ROOT / "requirements.txt").read_text()
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ \[;]", requirement)[0].lower())
        pin = re.search(rf"^{re.escape(name)}==\S+ .*\\\n +--hash=sha256:", locked, re.MULTILINE)
        assert pin, f"{name} is not in requirements.txt: run `make lock`"


def test_scripts_are_valid_bash() -> None:
    for script in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
        # Files that other scripts source are named *.sh.
        assert os.access(script, os.X_OK) != (script.suffix == ".sh"), f"{script.name} cannot be executed, or can"
        if script.read_text().startswith("#!/usr/bin/env bash"):
            subprocess.run(["bash", "-n", str(script)], check=True)
