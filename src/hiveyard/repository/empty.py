"""A repository with one commit and no files, for work that begins with nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from hiveyard.kit.names import new_id
from hiveyard.repository.git import git_output

_AUTHOR = {
    name: value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in ((f"GIT_{role}_NAME", "Hiveyard"), (f"GIT_{role}_EMAIL", "hiveyard@localhost"))
}


async def empty_repository(path: Path) -> Path:
    """Create the repository at `path` unless it exists; return the path. Raises RepositoryError."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f"{path.name}-{new_id()}")
    made.mkdir(mode=0o700)
    try:
        await git_output("init", "--quiet", "--initial-branch=main", at=made)
        await git_output("commit", "--quiet", "--allow-empty", "--message=Start", at=made, env=_AUTHOR)
        if not path.exists():
            made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return path
