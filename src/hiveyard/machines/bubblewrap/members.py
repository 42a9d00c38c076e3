"""Find the processes of a machine: its own, and the programs of the host that serve or enter it.

A program that enters a machine (nsenter) stays on the host while its child runs inside. A machine ends only when such
programs have reaped their children, so they must end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from hiveyard.kit import cmdline
from hiveyard.machines.bubblewrap import cgroups
from hiveyard.machines.bubblewrap.record import HostProcess, start_time

ENTERING = (b"sh", b"confine", b"env", b"setpriv", b"nsenter")
"""The programs that lead into a machine, in the order in which each becomes the next."""


def find(ident: str, groups: Sequence[str], init: HostProcess | None) -> set[HostProcess]:
    """Return every process of a machine that has not ended.

    They are found by `ident` in their command line, by the machine's control groups and, while its process 1 `init`
    has not ended, by its user namespace and by the command lines of programs that enter it.
    """
    word, pids = ident.encode(), cmdline.all_pids()
    found = cgroups.members(groups)
    target = 0
    if init is not None:
        own = inside(init.pid, pids)
        if not init.has_ended():  # else its number may belong to another process
            target = init.pid
            found |= own
    for pid, words in cmdline.words(pid for pid in pids if pid not in found):
        if word in words or (target and enters(words, target)):
            found.add(pid)
    return {HostProcess(pid, start_time(pid)) for pid in found}


def inside(init: int, pids: Iterable[int]) -> set[int]:
    """Return those of `pids` that are in the user namespace of process `init`, which is not this process's own.

    A machine cannot create user namespaces, so its own identifies its processes. The kernel may hide that of nsenter
    from a daemon that is not root; its command line is not hidden."""
    space = _user_namespace(init)
    if space is None or space == _user_namespace("self"):
        return set()
    return {pid for pid in pids if _user_namespace(pid) == space}


def enters(words: Sequence[bytes], init: int) -> bool:
    """Whether `words` is the command line of a program on its way into the machine of process `init`, or waiting for
    one that is inside."""
    name = words[0].rpartition(b"/")[2]
    return name in ENTERING and (b"--target", b"%d" % init) in pairwise(words)


def _user_namespace(pid: int | str) -> int | None:
    try:
        return Path(f"/proc/{pid}/ns/user").stat().st_ino
    except OSError:
        return None
