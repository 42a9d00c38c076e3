"""Removing from the cache what no machine can begin with any more: templates and disks of another layout or QEMU.

The cache may be shared by several installations, of several versions too. So what was used within a day stays, what a
running QEMU holds stays, and so does what a snapshot stands on.
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
_LONG = 24 * 3600.0


def use(root: Path) -> None:
    """Note that a template or a disk was used now."""
    with contextlib.suppress(FileNotFoundError):
        (root / USED).touch()


def stand_on(roots: Iterable[Path], snapshot: Path) -> None:
    """Note that a snapshot needs these directories."""
    for root in roots:
        files.write_atomic(root / _mark(snapshot), os.fsencode(snapshot), durable=False)


def sweep(useless: Iterable[Path]) -> None:
    """Remove those of the directories that nobody has used for long or needs."""
    remove_unused(root for root in useless if _idle(root))


def remove_unused(roots: Iterable[Path]) -> None:
    """Remove those of the directories that no running QEMU holds and no snapshot stands on."""
    held = _held()
    for root in roots:
        if root.resolve() not in held and not _bases(root):
            shutil.rmtree(root, ignore_errors=True)


def _idle(root: Path) -> bool:
    times = [path.stat().st_mtime for path in (root / USED, root) if path.exists()]
    return bool(times) and time.time() - max(times) > _LONG


def _bases(root: Path) -> bool:
    """Whether a snapshot stands on it, of those that are there still."""
    found = False
    for mark in root.glob(f"{_BASE_OF}*"):
        if Path(os.fsdecode(mark.read_bytes())).is_dir():
            found = True
        else:
            mark.unlink(missing_ok=True)
    return found


def _mark(snapshot: Path) -> str:
    return _BASE_OF + hashlib.sha256(os.fsencode(snapshot)).hexdigest()[:16]


def _held() -> set[Path]:
    """Directories that a QEMU of ours has open."""
    found = set()
    for _, vm in labels():
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{vm.pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(entry.readlink())
    return found
