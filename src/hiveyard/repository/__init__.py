"""Move the user's repository to a guest and back: check, take, check out, collect, apply.

The host never runs git inside a directory that a guest can write, and follows no link in it. The work leaves the guest
as one file, which is read through the guest up to a limit and checked before it is used.
"""

from __future__ import annotations

from pathlib import Path

from hiveyard.repository import branches
from hiveyard.repository.applying import Applied, apply
from hiveyard.repository.branches import branch_name
from hiveyard.repository.checkout import checkout
from hiveyard.repository.collecting import Collected, collect
from hiveyard.repository.diff import changes
from hiveyard.repository.source import RepositorySource, check, parse_source
from hiveyard.repository.submodules import bare_copy, submodules
from hiveyard.repository.taking import Taken, take

__all__ = [
    "Applied",
    "Collected",
    "RepositorySource",
    "Taken",
    "apply",
    "branch_name",
    "changes",
    "check",
    "checkout",
    "collect",
    "heads",
    "parse_source",
    "take",
]


async def heads(origin: Path) -> set[str]:
    """Return the branches of the host's bare copy and of its submodules: the work gets a branch in each."""
    repositories = [origin, *(bare_copy(origin, submodule) for submodule in submodules(origin))]
    return {name for at in repositories for name in await branches.heads(at)}
