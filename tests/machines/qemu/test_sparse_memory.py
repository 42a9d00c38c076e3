"""Memory that is kept as what differs from another, and put together again."""

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
        pytest.skip(f"{path} shares blocks: memory is whole there, and takes no room for that")
    return path


def wanted(base: Path) -> bytes:
    memory = bytearray(base.read_bytes())
    for at, data in PIECES:
        memory[at : at + len(data)] = data
    return bytes(memory)


def kept(root: Path, base: Path, *, whole: bool) -> int:
    bases = None if whole else base.parent / sparse_memory.BASES
    assert sparse_memory.begin(root, base, bases).inode == base.stat().st_ino
    return sparse_memory.finish(root, iter(PIECES))


def test_it_takes_the_room_of_the_changes_and_is_put_together_when_it_is_wanted(root: Path, base: Path) -> None:
    assert kept(root, base, whole=False) == 5 * PAGE
    assert sorted(path.name for path in root.iterdir()) == ["base", "changes"]
    assert (root / "changes").stat().st_size < 6 * PAGE
    before, seen = base.read_bytes(), list[bytes]()
    sparse_memory.unfold(root, lambda memory: seen.append(memory.read_bytes()))
    assert [path.name for path in root.iterdir()] == ["memory"]
    assert (root / "memory").read_bytes() == seen[0] == wanted(base)
    assert base.read_bytes() == before
    assert (root / "memory").stat().st_blocks * 512 < SIZE, "holes stay holes"


def test_it_is_there_when_what_it_began_with_is_gone(root: Path, base: Path) -> None:
    kept(root, base, whole=False)
    memory = wanted(base)
    base.unlink()
    sparse_memory.unfold(root, lambda _: None)
    assert (root / "memory").read_bytes() == memory


def test_what_it_began_with_is_as_before_to_the_change_time(root: Path, base: Path) -> None:
    """By that a template is known to be whole."""
    before = base.stat()
    kept(root, base, whole=False)
    sparse_memory.unfold(root, lambda _: None)
    now = base.stat()
    assert (now.st_ino, now.st_mtime_ns, now.st_ctime_ns) == (before.st_ino, before.st_mtime_ns, before.st_ctime_ns)


def test_snapshots_share_one_copy_which_goes_after_the_last_of_them(root: Path, base: Path) -> None:
    other, bases = root.parent / "other", base.parent / sparse_memory.BASES
    other.mkdir()
    kept(root, base, whole=False)
    kept(other, base, whole=False)
    assert (root / "base").stat().st_ino == (other / "base").stat().st_ino != base.stat().st_ino
    (bases / ".new").write_bytes(b"half of another")
    sparse_memory.forget(bases)
    assert len(copies(bases)) == 1
    shutil.rmtree(root)
    base.write_bytes(bytes(SIZE))  # as by a QEMU that a guest took over
    sparse_memory.forget(bases)
    sparse_memory.unfold(other, lambda _: None)
    assert (other / "memory").read_bytes()[: 9 * PAGE] == b"a" * PAGE + bytes(8 * PAGE)
    assert (other / "memory").read_bytes()[21 * PAGE : 22 * PAGE] != bytes(PAGE)
    sparse_memory.forget(bases)
    assert copies(bases) == []


def copies(bases: Path) -> list[str]:
    return [path.name for path in bases.iterdir() if path.name != ".lock"]


def test_a_full_disk_leaves_the_snapshot_as_it_was(root: Path, base: Path) -> None:
    kept(root, base, whole=False)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        sparse_memory.unfold(root, full)
    assert sorted(path.name for path in root.iterdir()) == ["base", "changes"]
    assert sparse_memory.room(root) >= 30 * PAGE
    sparse_memory.unfold(root, lambda _: None)
    assert (root / "memory").read_bytes() == wanted(base)


@pytest.mark.parametrize("whole", [True, False])
def test_it_is_put_together_once(root: Path, base: Path, *, whole: bool) -> None:
    kept(root, base, whole=whole)
    sparse_memory.unfold(root, lambda _: None)
    first = (root / "memory").stat()
    sparse_memory.unfold(root, lambda _: pytest.fail("it is there"))
    assert (root / "memory").stat().st_ino == first.st_ino
    assert (root / "memory").read_bytes() == wanted(base)


def test_a_killed_unfolding_is_done_again_or_brought_to_its_end(root: Path, base: Path) -> None:
    kept(root, base, whole=False)
    (root / ".memory").write_bytes(b"half")
    changes = (root / "changes").read_bytes()
    sparse_memory.unfold(root, lambda _: None)
    assert (root / "memory").read_bytes() == wanted(base)
    (root / "changes").write_bytes(changes)
    sparse_memory.unfold(root, lambda _: pytest.fail("it is there"))
    assert [path.name for path in root.iterdir()] == ["memory"]


@pytest.mark.parametrize("harm", ["cut", "beyond", "stray"])
def test_changes_that_do_not_fit_are_no_memory(root: Path, base: Path, harm: str) -> None:
    kept(root, base, whole=False)
    changes = root / "changes"
    said = changes.read_bytes()
    harmed = {
        "cut": said[:-1],
        "beyond": said + (SIZE - 1).to_bytes(8, "little") + b"\2" + bytes(9),
        "stray": said + b"x",
    }
    changes.write_bytes(harmed[harm])
    with pytest.raises(ProviderError, match="damaged"):
        sparse_memory.unfold(root, lambda _: None)
    assert not (root / "memory").exists()


def test_where_a_second_name_cannot_be_it_is_whole_at_once(root: Path, base: Path) -> None:
    (root / "base").symlink_to("nowhere")  # the name is taken
    kept(root, base, whole=False)
    assert (root / "memory").read_bytes() == wanted(base)
    assert not (root / "changes").exists()
