"""Which unit tests concern what is changed in the work tree: for `make quick`."""

from __future__ import annotations

import subprocess
from pathlib import Path, PurePosixPath


def tests_of_changes(root: Path) -> list[str]:
    """Return files and folders of tests, relative to the root, for what differs from the last commit. After a commit
    with nothing changed since: for what that commit changed."""
    changed = _git(root, "diff", "--name-only", "HEAD") + _git(root, "ls-files", "--others", "--exclude-standard")
    changed = changed or _git(root, "diff", "--name-only", "HEAD~1", "HEAD")
    found = {test for path in changed if (test := test_of(root, PurePosixPath(path)))}
    return sorted(test for test in found if not any(str(parent) in found for parent in PurePosixPath(test).parents))


def test_of(root: Path, path: PurePosixPath) -> str | None:
    """Return where the tests of a file are: tests/ mirrors src/hiveyard/."""
    if path.parts[:1] == ("tests",):
        if path.name.startswith("test_") and (root / path).exists():
            return str(path)
        return _folder(root, path.parent)
    if path.parts[:2] == ("src", "hiveyard"):
        place = PurePosixPath("tests", *path.parts[2:])
        own = place.with_name(f"test_{path.name}")
        return str(own) if (root / own).exists() else _folder(root, place.parent)
    return "tests/project" if path.suffix in (".md", ".toml") else None


def _folder(root: Path, place: PurePosixPath) -> str | None:
    """The nearest folder with tests; for what concerns all of them, none: that is what `make unit` is for."""
    while len(place.parts) > 1:
        if any((root / place).glob("test_*.py")):
            return str(place)
        place = place.parent
    return None


def _git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()
