"""Remove obsolete templates and disks from the cache: those of another layout or QEMU, which no machine can use.

Several installations, and several versions, may share the cache. So these are kept: directories that were used within
the last day, directories that a running QEMU has open, and directories that a snapshot needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from hiveyard.kit import files
from hiveyard.machines.qemu.vm import labels

USED = ".used"
_BASE_OF = ".base-of-"
_IDLE_AFTER = 24 * 3600.0


def mark_used(root: Path) -> None:
    """Record that a template or a disk was used now."""
    with contextlib.suppress(FileNotFoundError):
        (root / USED).touch()


def mark_needed(roots: Iterable[Path], snapshot: Path) -> None:
    """Record that a snapshot needs these directories."""
    for root in roots:
        files.write_atomic(root / _mark(snapshot), os.fsencode(snapshot), durable=False)


def sweep(obsolete: Iterable[Path]) -> None:
    """Remove the directories that are neither needed nor were used within the last day."""
    remove_unused(root for root in obsolete if _is_idle(root))


def remove_unused(roots: Iterable[Path]) -> None:
    """Remove the directories that no running QEMU has open and no snapshot needs."""
    in_use = _open_directories()
    for root in roots:
        if root.resolve() not in in_use and not _is_needed(root):
            shutil.rmtree(root, ignore_errors=True)


def _is_idle(root: Path) -> bool:
    times = [path.stat().st_mtime for path in (root / USED, root) if path.exists()]
    return bool(times) and time.time() - max(times) > _IDLE_AFTER


def _is_needed(root: Path) -> bool:
    """Return whether an existing snapshot needs `root`. Marks of removed snapshots are deleted."""
    needed = False
    for mark in root.glob(f"{_BASE_OF}*"):
        if Path(os.fsdecode(mark.read_bytes())).is_dir():
            needed = True
        else:
            mark.unlink(missing_ok=True)
    return needed


def _mark(snapshot: Path) -> str:
    return _BASE_OF + hashlib.sha256(os.fsencode(snapshot)).hexdigest()[:16]


def _open_directories() -> set[Path]:
    """Return the directories that a QEMU of Hiveyard has open."""
    found = set()
    for _, vm in labels():
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{vm.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(entry.readlink())
    return found
