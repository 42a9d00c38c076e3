"""The user that QEMU runs as: never root, with no group it does not need; in its namespace it is the guest's user.

The namespace is why a session's files look the same from both sides: QEMU's one host user is uid 1000 in there, so
that the guest's user owns what the host gave it, and the host owns what the guest made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hiveyard.kit.trees import walk

GUEST_UID = 1000
_SPREAD = 1 << 16
_PROCESSES = 512  # a door takes 256 connections at once; the rest is for QEMU's threads
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_SET_PTRACER = 0x59616D61  # PR_SET_PTRACER of <linux/prctl.h>; -1 is any process


class User(NamedTuple):
    """A host user. `uid` None is whoever the daemon is; `group` may use templates."""

    uid: int | None
    group: int | None

    def prefix(self, *, kvm: bool = False, bound: bool = False) -> list[str]:
        """The words before a program that make it run as this user, with its limits; `bound` to our own life."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = ["prlimit", "--core=0", f"--nofile={hard}:{hard}"]
        drop = ["setpriv", "--no-new-privs", "--inh-caps=-all"]
        if self.uid is not None:
            drop += [f"--reuid={self.uid}", f"--regid={self.uid}", "--groups=" + ",".join(self._groups(kvm))]
            drop.append("--bounding-set=-all")
        # The kernel forgets this wish at each change of credentials, so it is made last.
        last = ["setpriv", "--pdeathsig=KILL", "--"] if bound else []
        return [*_readable(), *limits, *drop, "--", *_namespace(), *_few(self.uid), *last]

    def _groups(self, kvm: bool) -> Sequence[str]:
        groups = [str(self.group)]
        if kvm and Path("/dev/kvm").exists():
            groups.append(str(Path("/dev/kvm").stat().st_gid))
        return groups

    def owns(self, path: Path) -> None:
        """Give one file or directory to this user."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def owns_tree(self, root: Path) -> None:
        """Give a directory and all below it to this user, following no symlink: a guest may have made the tree."""
        if self.uid is None:
            return
        self.owns(root)
        for directories, files, fd in walk(root):
            for name in (*directories, *files):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if (status.st_uid, status.st_gid) != (self.uid, self.uid):
                    os.chown(name, self.uid, self.uid, dir_fd=fd, follow_symlinks=False)


def user_for(what: str, *, first: int) -> User:
    """The user for one session (or machine) `what`. As root each gets its own out of 65,536, so that a guest that
    breaks out of its QEMU finds nothing of another; the same `what` gives the same one each time."""
    if os.geteuid() != 0:
        return User(None, None)
    number = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=4).digest())
    return User(first + 1 + number % _SPREAD, first)


def builder(*, first: int) -> User:
    """The user who makes templates."""
    return User(first, first) if os.geteuid() == 0 else User(None, None)


def readable(architecture: str) -> list[str]:
    """The words before a program that let others of its user read its memory where Yama keeps that to its parents
    (ptrace_scope 1, Ubuntu's default). The wish outlives exec, and gives no more than ptrace_scope 0 does."""
    number = {"x86_64": 157, "aarch64": 167}[architecture]  # of the system call prctl
    return ["perl", "-e", f"syscall({number}, {_SET_PTRACER}, -1, 0, 0, 0); exec @ARGV or die $!", "--"]


def _readable() -> list[str]:
    """For snapshots. Root needs no leave, nor does who made the user namespace that a program is in."""
    with contextlib.suppress(OSError):
        if os.geteuid() != 0 and not _namespace() and _YAMA.read_text().strip() == "1":
            return readable(os.uname().machine)
    return []


def _few(uid: int | None) -> list[str]:
    """Each connection of a guest to its door is a process, also while nobody answers there. They are counted for a user
    of one's own, or for the namespace; whoever has neither shares the count with all the programs of a person."""
    return ["prlimit", f"--nproc={_PROCESSES}", "--"] if uid is not None or _namespace() else []


def _namespace() -> list[str]:
    if os.geteuid() == GUEST_UID and os.getegid() == GUEST_UID:
        return []  # is the guest's user already
    return ["unshare", "--user", f"--map-user={GUEST_UID}", f"--map-group={GUEST_UID}", "--"]
