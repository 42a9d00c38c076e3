"""Read packs from untrusted sources with a memory limit.

Git allocates all the memory that an object's header asks for, and a commit or tree of gigabytes of zeros packs to
almost nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from hiveyard.kit.process import Completed
from hiveyard.repository.git import complaint, git_from_file

MEMORY = 2 << 30
"""Limit for the private memory of a git process that reads an untrusted pack, in bytes. Mapped packs do not count."""

LOW_MEMORY = ("-c", "core.bigFileThreshold=64m", "-c", "pack.threads=1")
"""Options that keep git from holding a large file, or several objects at once, in memory while it indexes a pack."""

_TIMEOUT = 3600.0
# A lower limit that is already set stays.
_LIMITED = 'ulimit -d "$1" 2>/dev/null || [ "$(ulimit -d)" != unlimited ] || exit 125; shift; exec "$@"'
_OUT_OF_MEMORY = re.compile(r"out of memory|cannot allocate memory", re.IGNORECASE)


def limit_memory(memory: int) -> tuple[str, ...]:
    """Return a command that runs its arguments with at most `memory` bytes of private memory."""
    return ("sh", "-c", _LIMITED, "sh", str(memory >> 10))


async def index_pack(at: Path, file: Path, offset: int, *, thin: bool = False, memory: int = MEMORY) -> Completed:
    """Add the objects of the pack that begins at `offset` of a file to a repository. Git checks each object and each
    link. (Before git 2.46, `git fetch` of a bundle checks neither, whatever the configuration.) A `thin` pack may
    refer to objects that the repository has."""
    words = (*LOW_MEMORY, "index-pack", "--stdin", "--strict", *(("--fix-thin",) if thin else ()))
    return await git_from_file(*words, at=at, file=file, offset=offset, timeout=_TIMEOUT, prefix=limit_memory(memory))


def pack_error(done: Completed, memory: int) -> str:
    """Return why git could not read a pack."""
    if _OUT_OF_MEMORY.search(done.stderr.decode("utf-8", "replace")):
        return f"it takes more than {memory >> 20} MiB of memory to read"
    return complaint(done)
