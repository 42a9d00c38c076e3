"""Reading packs that a stranger made: git gives an object all the memory that its header asks for, so its processes
are held.

A commit or a tree of gigabytes of zeros packs to nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from hiveyard.kit.process import Completed
from hiveyard.repository.git import complaint, git_from_file

MEMORY = 2 << 30
"""Most bytes of memory of its own that a git process may have which reads what a stranger made. Mapped packs are not
counted."""

FRUGAL = ("-c", "core.bigFileThreshold=64m", "-c", "pack.threads=1")
"""Options with which git keeps no large file in memory while it takes a pack in, and not several objects at once."""

_TIMEOUT = 3600.0
# A limit that is lower already stays.
_HELD = 'ulimit -d "$1" 2>/dev/null || [ "$(ulimit -d)" != unlimited ] || exit 125; shift; exec "$@"'
_STARVED = re.compile(r"out of memory|cannot allocate memory", re.IGNORECASE)


def held(memory: int) -> tuple[str, ...]:
    """A command that runs its arguments with at most so many bytes of memory of their own."""
    return ("sh", "-c", _HELD, "sh", str(memory >> 10))


async def take_in(at: Path, file: Path, offset: int, *, thin: bool = False, memory: int = MEMORY) -> Completed:
    """Take the objects of the pack in a file, from `offset` on, into a repository, each checked on its own and for what
    it links to. (`git fetch` of a bundle checks neither before git 2.46, whatever its configuration says.) A `thin`
    pack builds on objects that are there."""
    words = (*FRUGAL, "index-pack", "--stdin", "--strict", *(("--fix-thin",) if thin else ()))
    return await git_from_file(*words, at=at, file=file, offset=offset, timeout=_TIMEOUT, prefix=held(memory))


def refusal(done: Completed, memory: int) -> str:
    """Why git could not read it."""
    if _STARVED.search(done.stderr.decode("utf-8", "replace")):
        return f"it takes more than {memory >> 20} MiB of memory to read"
    return complaint(done)
