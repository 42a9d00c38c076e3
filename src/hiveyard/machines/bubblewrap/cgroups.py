"""Limit the memory, processors and processes of a machine, and freeze it, with control groups.

Root can create groups, on cgroup v1 and v2. Other users usually cannot: then `Cgroups.controllers` is empty, and the
caller reports it. Only the freezer of v2 is used, which hosts with v1 often have, too: processes frozen by v1 cannot be
killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from hiveyard.core.machines import Shape

_ROOT = Path("/sys/fs/cgroup")
_PARENT = "hiveyard"
_ABANDONED = 300  # seconds after which an empty group is removed
_PERIOD = 100_000  # microseconds, the kernel's own default
_FREEZE = "cgroup.freeze"
_FREEZE_TIMEOUT = 10.0  # seconds: a process that waits for a disk is frozen only when the disk has answered


class Cgroups:
    """The control groups of all machines: one for each machine and, with v1, each controller."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._v2 = (root / "cgroup.controllers").is_file()
        self.controllers: tuple[str, ...] = ()
        self._freezer: Path | None = None

    def discover(self) -> None:
        """Create the parent group, and find the controllers that can be used and the freezer."""
        found = []
        for controller in ("memory", "pids", "cpu"):
            # In a container it may be an ordinary directory.
            if not (self._parent(controller).parent / "cgroup.procs").is_file():
                continue
            with contextlib.suppress(OSError):
                self._parent(controller).mkdir(exist_ok=True)
                if self._v2:
                    for group in (self._root, self._parent(controller)):
                        (group / "cgroup.subtree_control").write_text(f"+{controller}")
                if os.access(self._parent(controller), os.W_OK):
                    if controller == "cpu":
                        self._lower_priority()
                    found.append(controller)
                    _sweep(self._parent(controller))
        self.controllers = tuple(found)
        self._discover_freezer()

    def _discover_freezer(self) -> None:
        unified = self._root if self._v2 else self._root / "unified"
        with contextlib.suppress(OSError):
            if (unified / "cgroup.procs").is_file():
                parent = unified / _PARENT
                parent.mkdir(exist_ok=True)
                if os.access(parent / _FREEZE, os.W_OK):
                    self._freezer = parent
                    _sweep(parent)

    def groups(self, ident: str) -> list[str]:
        """Return the directories of a machine's groups. A process joins them by writing to their `cgroup.procs`."""
        parents = {self._parent(controller) for controller in self.controllers}
        if self._freezer is not None:
            parents.add(self._freezer)
        return sorted(str(parent / ident) for parent in parents)

    def create(self, ident: str, shape: Shape) -> None:
        """Create a machine's groups with the limits of `shape`."""
        limits = {
            "memory": {"memory.max" if self._v2 else "memory.limit_in_bytes": shape.memory_mib << 20},
            "pids": {"pids.max": shape.pids},
            "cpu": {"cpu.max": f"{_quota(shape.cpus)} {_PERIOD}"}
            if self._v2
            else {"cpu.cfs_period_us": _PERIOD, "cpu.cfs_quota_us": _quota(shape.cpus)},
        }
        for path in self.groups(ident):
            Path(path).mkdir(exist_ok=True)
        for controller in self.controllers:
            group = self._parent(controller) / ident
            for file, value in limits[controller].items():
                (group / file).write_text(str(value))
            with contextlib.suppress(OSError):  # where there is no swap accounting
                if controller == "memory":
                    swap = (
                        ("memory.swap.max", 0) if self._v2 else ("memory.memsw.limit_in_bytes", shape.memory_mib << 20)
                    )
                    (group / swap[0]).write_text(str(swap[1]))

    def _lower_priority(self) -> None:
        """Give all machines together half the weight of one process of the host, so that thousands of processes in a
        machine do not starve the daemon that has to kill them."""
        file, weight = ("cpu.weight", 50) if self._v2 else ("cpu.shares", 512)
        (self._parent("cpu") / file).write_text(str(weight))

    def _parent(self, controller: str) -> Path:
        return self._root / _PARENT if self._v2 else self._root / controller / _PARENT


def _quota(cpus: float) -> int:
    """Return `cpus` as microseconds of each period. A quarter of one of the host's processors is never given away."""
    most = (os.cpu_count() or 1) - 0.25
    return int(min(cpus, most) * _PERIOD)


def _sweep(parent: Path) -> None:
    """Remove groups that are empty and that no process is about to enter. They are left over when the kernel needs long
    to remove their last process."""
    for group in parent.glob("hiveyard-*"):
        with contextlib.suppress(OSError):  # not empty: a machine uses it
            if group.stat().st_mtime < time.time() - _ABANDONED:
                group.rmdir()


def freezer(groups: Sequence[str]) -> Path | None:
    """Return the one of a machine's groups that can be frozen."""
    return next((Path(group) for group in groups if Path(group, _FREEZE).is_file()), None)


async def freeze(group: Path) -> None:
    """Freeze a group, and return when nothing in it runs. A process that enters it later is frozen, too.

    Raises TimeoutError. Then, and when it is cancelled, the group is thawed again."""
    try:
        (group / _FREEZE).write_text("1")
        with anyio.fail_after(_FREEZE_TIMEOUT):
            while "frozen 1" not in (group / "cgroup.events").read_text():  # noqa: ASYNC110 (a file of the kernel)
                await anyio.sleep(0.001)
    except BaseException:
        thaw(group)
        raise


def thaw(group: Path) -> None:
    """Let a group continue. A group that no longer exists is a success."""
    with contextlib.suppress(FileNotFoundError):
        (group / _FREEZE).write_text("0")


def members(groups: Sequence[str]) -> set[int]:
    """Return the processes in any of a machine's groups; a group that does not exist has none."""
    found: set[int] = set()
    for group in groups:
        with contextlib.suppress(OSError):
            found.update(map(int, Path(group, "cgroup.procs").read_text().split()))
    return found - {0}  # the kernel's number for a process of another pid namespace


async def remove(groups: list[str]) -> None:
    """Remove the groups of a machine that has ended. A group that is not empty after a second stays until a daemon
    starts again."""
    for group in groups:
        for _ in range(50):
            try:
                Path(group).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                await anyio.sleep(0.02)  # the kernel has not removed the last process yet
            else:
                break
