"""What a guest gets of the host's disk without writing it."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.fuse_server.kernel import FALLOCATE, ROOT, SETATTR, Kernel, serving

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 32 MiB more than what is left to the host."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    place = tmp_path / "disk"
    place.mkdir()
    size = f"size={1024 + 32}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def kernel(disk: Path, tmp_path: Path) -> Iterator[Kernel]:
    (disk / "file").touch()
    with serving(disk, tmp_path / "control") as kernel:
        yield kernel


def test_a_guest_cannot_take_the_whole_disk_at_once(kernel: Kernel, disk: Path) -> None:
    handle = kernel.opened(kernel.lookup("file"))

    def allocated(offset: int, length: int) -> int:
        return kernel.call(FALLOCATE, ROOT, struct.pack("<QQQII", handle, offset, length, 0, 0)).code

    assert allocated(0, 64 * MIB) == -errno.ENOSPC
    assert allocated(0, (1 << 64) - 1) == -errno.ENOSPC
    assert (disk / "file").stat().st_blocks == 0
    assert allocated(0, 16 * MIB) == 0
    assert allocated(16 * MIB, 8 * MIB) == 0
    assert allocated(24 * MIB, 16 * MIB) == -errno.ENOSPC
    assert (disk / "file").stat().st_blocks * 512 == 24 * MIB


def test_a_size_beyond_the_disk_takes_nothing_of_it(kernel: Kernel, disk: Path) -> None:
    node = kernel.lookup("file")
    new = struct.pack("<IIQQQQQQIIIIIIII", 8, 0, 0, 1 << 40, *(0,) * 12)
    assert kernel.call(SETATTR, node, new).code == 0
    assert (disk / "file").stat().st_size == 1 << 40
    assert (disk / "file").stat().st_blocks == 0
