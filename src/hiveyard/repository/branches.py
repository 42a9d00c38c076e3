"""List branches, find names that git cannot keep side by side, and choose the branch of a session."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from pathlib import Path

from hiveyard.repository.git import git


async def heads(at: Path) -> list[str]:
    """Return the names of a repository's branches."""
    listed = await git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", at=at)
    return listed.stdout.decode("utf-8", "surrogateescape").splitlines()


def collide(one: str, other: str) -> bool:
    """Return whether a repository cannot have both: they are equal, or one would be a directory of the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def branch_name(slug: str, taken: Collection[str]) -> str:
    """Return the branch of a session for which the user chose none: one that can exist beside those in `taken`."""
    # A branch `hv` excludes any `hv/...`.
    preferred = f"hv-{slug}" if "hv" in taken else f"hv/{slug}"
    names = (preferred if number == 1 else f"{preferred}-{number}" for number in count(1))
    return next(name for name in names if not any(collide(name, other) for other in taken))
