"""The user that QEMU runs as: never root, with no group it does not need, in a user namespace of its own.

The kernel counts the processes of a namespace by themselves, which limits what a guest can make QEMU start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

GUEST_UID = 1000
_SPREAD = 1 << 16
_PROCESSES = 512  # a door accepts 256 connections at once; the rest is for QEMU's threads
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_SET_PTRACER = 0x59616D61  # PR_SET_PTRACER of <linux/prctl.h>; -1 is any process


class User(NamedTuple):
    """A host user. `uid` None is the daemon's own user; `group` may use templates."""

    uid: int | None
    group: int | None

    def prefix(self, *, kvm: bool = False, die_with_parent: bool = False) -> list[str]:
        """Return the command prefix that runs a program as this user, with its limits."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = ["prlimit", "--core=0", f"--nofile={hard}:{hard}"]
        drop = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
        if self.uid is not None:
            drop += [f"--reuid={self.uid}", f"--regid={self.uid}", "--groups=" + ",".join(self._groups(kvm))]
            drop.append("--bounding-set=-all")
        # The kernel resets this setting at each change of credentials, so it comes last.
        last = ["setpriv", "--pdeathsig=KILL", "--"] if die_with_parent else []
        return [*_allow_reading(), *limits, *drop, "--", *_namespace(), *_process_limit(self.uid), *last]

    def _groups(self, kvm: bool) -> Sequence[str]:
        groups = [str(self.group)]
        if kvm and Path("/dev/kvm").exists():
            groups.append(str(Path("/dev/kvm").stat().st_gid))
        return groups

    def give(self, path: Path) -> None:
        """Give one file or directory to this user."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)


def user_for(what: str, *, first: int) -> User:
    """Return the user for one session (or machine) `what`, the same one each time. If the daemon is root, each session
    gets one of 65,536 users, so that a guest that breaks out of its QEMU has no access to other sessions."""
    if os.geteuid() != 0:
        return User(None, None)
    number = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=4).digest())
    return User(first + 1 + number % _SPREAD, first)


def builder(*, first: int) -> User:
    """Return the user that makes templates."""
    return User(first, first) if os.geteuid() == 0 else User(None, None)


def allow_reading(architecture: str) -> list[str]:
    """Return the command prefix that lets other processes of its user read a program's memory, which Yama restricts to
    its parents (ptrace_scope 1, Ubuntu's default). The permission survives exec. It is what ptrace_scope 0 gives."""
    number = {"x86_64": 157, "aarch64": 167}[architecture]  # of the system call prctl
    return ["perl", "-e", f"syscall({number}, {_SET_PTRACER}, -1, 0, 0, 0); exec @ARGV or die $!", "--"]


def _allow_reading() -> list[str]:
    """Return `allow_reading`, which snapshots need, if it is necessary. Root needs no permission, and neither does the
    user who made the program's user namespace."""
    with contextlib.suppress(OSError):
        if os.geteuid() != 0 and not _namespace() and _YAMA.read_text().strip() == "1":
            return allow_reading(os.uname().machine)
    return []


def _process_limit(uid: int | None) -> list[str]:
    """Return the command prefix that limits QEMU's processes, if a limit is possible.

    Each connection of a guest to its door is a process, even while nothing answers there. The kernel counts processes
    per user or per user namespace. With neither of its own, QEMU would share the count with all programs of the
    user."""
    return ["prlimit", f"--nproc={_PROCESSES}", "--"] if uid is not None or _namespace() else []


def _namespace() -> list[str]:
    if os.geteuid() == GUEST_UID and os.getegid() == GUEST_UID:
        return []  # the daemon's ids are the guest user's already
    return ["unshare", "--user", f"--map-user={GUEST_UID}", f"--map-group={GUEST_UID}", "--"]
