"""Memory, processor and process limits for all of a machine together, and its freezer, where this host lets us.

Root can, on cgroup v1 and v2; others usually cannot: then `Cgroups.controllers` is empty and the caller says so. The
freezer is that of v2 alone, which a host with v1 has beside it: what v1 has frozen cannot be killed.
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
_ABANDONED = 300  # seconds
_PERIOD = 100_000  # microseconds, the kernel's own default
_FREEZE = "cgroup.freeze"
_PATIENCE = 10.0  # seconds: a process that waits for a disk is frozen only when that has answered


class Cgroups:
    """Finds out once what can be limited, then makes and removes one group per machine (and controller, in v1)."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._v2 = (root / "cgroup.controllers").is_file()
        self.controllers: tuple[str, ...] = ()
        self._freezer: Path | None = None

    def discover(self) -> None:
        """Make the parent group, and see which controllers obey and whether there is a freezer."""
        found = []
        for controller in ("memory", "pids", "cpu"):
            # Within containers it may be a directory like any other.
            if not (self._parent(controller).parent / "cgroup.procs").is_file():
                continue
            with contextlib.suppress(OSError):
                self._parent(controller).mkdir(exist_ok=True)
                if self._v2:
                    for group in (self._root, self._parent(controller)):
                        (group / "cgroup.subtree_control").write_text(f"+{controller}")
                if os.access(self._parent(controller), os.W_OK):
                    if controller == "cpu":
                        self._yield_to_the_host()
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
        """Directories of a machine's groups; whoever writes itself into their `cgroup.procs` is limited."""
        parents = {self._parent(controller) for controller in self.controllers}
        if self._freezer is not None:
            parents.add(self._freezer)
        return sorted(str(parent / ident) for parent in parents)

    def make(self, ident: str, shape: Shape) -> None:
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

    def _yield_to_the_host(self) -> None:
        """All machines together weigh half of what one process of the host does, so that thousands of processes in a
        machine do not starve the daemon that has to end them."""
        file, weight = ("cpu.weight", 50) if self._v2 else ("cpu.shares", 512)
        (self._parent("cpu") / file).write_text(str(weight))

    def _parent(self, controller: str) -> Path:
        return self._root / _PARENT if self._v2 else self._root / controller / _PARENT


def _quota(cpus: float) -> int:
    """Microseconds of each period: `cpus` processors, and never the last quarter of one, which is the host's."""
    most = (os.cpu_count() or 1) - 0.25
    return int(min(cpus, most) * _PERIOD)


def _sweep(parent: Path) -> None:
    """Remove groups that nobody is in and nobody is about to enter: the kernel was too slow with their last process."""
    for group in parent.glob("hiveyard-*"):
        with contextlib.suppress(OSError):  # not empty: a machine lives in it
            if group.stat().st_mtime < time.time() - _ABANDONED:
                group.rmdir()


def freezer(groups: Sequence[str]) -> Path | None:
    """The one of a machine's groups that can be frozen."""
    return next((Path(group) for group in groups if Path(group, _FREEZE).is_file()), None)


async def freeze(group: Path) -> None:
    """Return when nothing in a group runs; who enters it later stands still too. Raises TimeoutError; then it goes on,
    as it does when this is cancelled."""
    try:
        (group / _FREEZE).write_text("1")
        with anyio.fail_after(_PATIENCE):
            while "frozen 1" not in (group / "cgroup.events").read_text():  # noqa: ASYNC110 (a file of the kernel)
                await anyio.sleep(0.001)
    except BaseException:
        thaw(group)
        raise


def thaw(group: Path) -> None:
    """A group that went with its machine is a success."""
    with contextlib.suppress(FileNotFoundError):
        (group / _FREEZE).write_text("0")


async def remove(groups: list[str]) -> None:
    """Remove the groups of a dead machine. One that does not empty in a second stays until a daemon starts anew."""
    for group in groups:
        for _ in range(50):
            try:
                Path(group).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                await anyio.sleep(0.02)  # the kernel has not buried the last process yet
            else:
                break
