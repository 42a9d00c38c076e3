"""The user's repository on its way to a guest and back: check, take, push, collect, apply.

The principle: the host never runs git inside a directory that a guest can write, and never follows what a guest left
there. The work comes out as one file, read through the guest with a limit and checked before anything uses it.
"""

from __future__ import annotations

from pathlib import Path

from hiveyard.repository import branches
from hiveyard.repository.applying import Applied, apply
from hiveyard.repository.branches import branch_name
from hiveyard.repository.collecting import Collected, collect
from hiveyard.repository.diff import changes
from hiveyard.repository.pushing import push
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
    "collect",
    "heads",
    "parse_source",
    "push",
    "take",
]


async def heads(origin: Path) -> set[str]:
    """The branches of the host's bare copy, those of its submodules too: the work gets a branch in each."""
    places = [origin, *(bare_copy(origin, one) for one in submodules(origin))]
    return {name for at in places for name in await branches.heads(at)}
