"""The pages that a process changed in its mapping of a file, as the kernel reports them on any file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hiveyard.core.errors import CannotKeepMemory
from hiveyard.machines.qemu import memory

PAGE = os.sysconf("SC_PAGE_SIZE")
CHANGES = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
page = mmap.PAGESIZE
memory[3 * page : 5 * page] = b"x" * 2 * page
memory[9 * page] = 7
print("changed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(b"a" * 16 * PAGE)
    return path


def file(path: Path) -> memory.File:
    with path.open("rb") as opened:
        return memory.mapped(opened.fileno())


def test_the_pages_that_a_process_changed_are_found(base: Path) -> None:
    words = [sys.executable, "-c", CHANGES, str(base)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "changed\n"
        found = list(memory.changes(process.pid, file(base)))
        other = base.with_name("other")
        other.write_bytes(base.read_bytes())
        with pytest.raises(CannotKeepMemory, match="no longer exists"):
            list(memory.changes(process.pid, file(other)))
        process.stdin.close()
    assert found == [(3 * PAGE, b"x" * 2 * PAGE), (9 * PAGE, b"\x07" + b"a" * (PAGE - 1))]
