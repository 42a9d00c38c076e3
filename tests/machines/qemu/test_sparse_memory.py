"""Memory that is stored as its changes to a base, and expanded again."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from hiveyard.core.errors import ProviderError
from hiveyard.machines.qemu import sparse_memory
from hiveyard.machines.qemu.memory import Piece
from tests.support.blocks import shares_blocks

PAGE = 4096
SIZE = 64 * PAGE
PIECES = [Piece(0, b"a" * PAGE), Piece(9 * PAGE, b"b" * 3 * PAGE), Piece(SIZE - PAGE, bytes(PAGE))]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "began"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(20 * PAGE)
        file.write(os.urandom(30 * PAGE))
        file.seek(SIZE - PAGE)
        file.write(b"end" * 100)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "kept"
    path.mkdir()
    if shares_blocks(path):
        pytest.skip(f"{path} shares blocks: memory is complete there and takes no extra space")
    return path


def expected(base: Path) -> bytes:
    memory = bytearray(base.read_bytes())
    for at, data in PIECES:
        memory[at : at + len(data)] = data
    return bytes(memory)


def store(root: Path, base: Path, *, complete: bool) -> int:
    bases = None if complete else base.parent / sparse_memory.BASES
    assert sparse_memory.begin(root, base, bases).inode == base.stat().st_ino
    return sparse_memory.finish(root, iter(PIECES))


def test_it_takes_the_space_of_the_changes_until_it_is_expanded(root: Path, base: Path) -> None:
    assert store(root, base, complete=False) == 5 * PAGE
    assert sorted(path.name for path in root.iterdir()) == ["base", "changes"]
    assert (root / "changes").stat().st_size < 6 * PAGE
    before, seen = base.read_bytes(), list[bytes]()
    sparse_memory.expand(root, lambda memory: seen.append(memory.read_bytes()))
    assert [path.name for path in root.iterdir()] == ["memory"]
    assert (root / "memory").read_bytes() == seen[0] == expected(base)
    assert base.read_bytes() == before
    assert (root / "memory").stat().st_blocks * 512 < SIZE, "holes stay holes"


def test_it_can_be_expanded_after_the_original_base_was_removed(root: Path, base: Path) -> None:
    store(root, base, complete=False)
    memory = expected(base)
    base.unlink()
    sparse_memory.expand(root, lambda _: None)
    assert (root / "memory").read_bytes() == memory


def test_the_original_base_keeps_its_change_time(root: Path, base: Path) -> None:
    """A template is verified by it."""
    before = base.stat()
    store(root, base, complete=False)
    sparse_memory.expand(root, lambda _: None)
    now = base.stat()
    assert (now.st_ino, now.st_mtime_ns, now.st_ctime_ns) == (before.st_ino, before.st_mtime_ns, before.st_ctime_ns)


def test_snapshots_share_one_copy_which_is_removed_with_the_last_of_them(root: Path, base: Path) -> None:
    other, bases = root.parent / "other", base.parent / sparse_memory.BASES
    other.mkdir()
    store(root, base, complete=False)
    store(other, base, complete=False)
    assert (root / "base").stat().st_ino == (other / "base").stat().st_ino != base.stat().st_ino
    (bases / ".new").write_bytes(b"half of another")
    sparse_memory.remove_unused_bases(bases)
    assert len(copies(bases)) == 1
    shutil.rmtree(root)
    base.write_bytes(bytes(SIZE))  # as a guest could that took over its QEMU
    sparse_memory.remove_unused_bases(bases)
    sparse_memory.expand(other, lambda _: None)
    assert (other / "memory").read_bytes()[: 9 * PAGE] == b"a" * PAGE + bytes(8 * PAGE)
    assert (other / "memory").read_bytes()[21 * PAGE : 22 * PAGE] != bytes(PAGE)
    sparse_memory.remove_unused_bases(bases)
    assert copies(bases) == []


def copies(bases: Path) -> list[str]:
    return [path.name for path in bases.iterdir() if path.name != ".lock"]


def test_a_full_disk_leaves_the_snapshot_as_it_was(root: Path, base: Path) -> None:
    store(root, base, complete=False)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        sparse_memory.expand(root, full)
    assert sorted(path.name for path in root.iterdir()) == ["base", "changes"]
    assert sparse_memory.expand_size(root) >= 30 * PAGE
    sparse_memory.expand(root, lambda _: None)
    assert (root / "memory").read_bytes() == expected(base)


@pytest.mark.parametrize("complete", [True, False])
def test_it_is_expanded_once(root: Path, base: Path, *, complete: bool) -> None:
    store(root, base, complete=complete)
    sparse_memory.expand(root, lambda _: None)
    first = (root / "memory").stat()
    sparse_memory.expand(root, lambda _: pytest.fail("it exists already"))
    assert (root / "memory").stat().st_ino == first.st_ino
    assert (root / "memory").read_bytes() == expected(base)


def test_an_expansion_that_was_killed_is_repeated_or_completed(root: Path, base: Path) -> None:
    store(root, base, complete=False)
    (root / ".memory").write_bytes(b"half")
    changes = (root / "changes").read_bytes()
    sparse_memory.expand(root, lambda _: None)
    assert (root / "memory").read_bytes() == expected(base)
    (root / "changes").write_bytes(changes)
    sparse_memory.expand(root, lambda _: pytest.fail("it exists already"))
    assert [path.name for path in root.iterdir()] == ["memory"]


@pytest.mark.parametrize("harm", ["cut", "beyond", "stray"])
def test_malformed_changes_are_refused(root: Path, base: Path, harm: str) -> None:
    store(root, base, complete=False)
    changes = root / "changes"
    intact = changes.read_bytes()
    harmed = {
        "cut": intact[:-1],
        "beyond": intact + (SIZE - 1).to_bytes(8, "little") + b"\2" + bytes(9),
        "stray": intact + b"x",
    }
    changes.write_bytes(harmed[harm])
    with pytest.raises(ProviderError, match="damaged"):
        sparse_memory.expand(root, lambda _: None)
    assert not (root / "memory").exists()


def test_without_hard_links_the_complete_memory_is_stored(root: Path, base: Path) -> None:
    (root / "base").symlink_to("nowhere")  # the name is taken
    store(root, base, complete=False)
    assert (root / "memory").read_bytes() == expected(base)
    assert not (root / "changes").exists()
