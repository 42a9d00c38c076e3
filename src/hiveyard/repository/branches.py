"""Names of branches: which of them git can keep beside each other, and what a session's is called by itself."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count
from pathlib import Path

from hiveyard.repository.git import git


async def heads(at: Path) -> list[str]:
    """The branches that a repository has."""
    listed = await git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads", at=at)
    return listed.stdout.decode("utf-8", "surrogateescape").splitlines()


def collide(one: str, other: str) -> bool:
    """Whether a repository cannot have both: they are the same, or one would be a directory for the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def branch_name(slug: str, taken: Collection[str]) -> str:
    """The branch that a session works on when nobody chose one: beside those that are `taken`."""
    # Beside a branch `hv` there can be none below it.
    wanted = f"hv-{slug}" if "hv" in taken else f"hv/{slug}"
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
    return next(name for name in names if not any(collide(name, other) for other in taken))
