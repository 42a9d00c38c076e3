"""Copies of trees that a guest made."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hiveyard.kit.copying import DEEPEST, Copied, Former, copy_tree
from tests.support.nobody import nobody


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    (path / "below").mkdir(parents=True)
    (path / "a.txt").write_text("one\n")
    (path / "below" / "b.sh").write_text("#!/bin/sh\n")
    (path / "below" / "b.sh").chmod(0o755)
    return path


def settled(path: Path) -> None:
    """Wait until the files of a tree are old enough to be distinguished from later ones."""
    newest = max(file.lstat().st_ctime_ns for file in path.rglob("*"))
    while time.time_ns() < newest + 2_100_000_000:
        time.sleep(0.05)


def test_content_modes_and_times_are_the_same(tree: Path, tmp_path: Path) -> None:
    os.utime(tree / "a.txt", ns=(1, 2))
    done = copy_tree(tree, tmp_path / "copy")
    assert done.files == 2
    assert (tmp_path / "copy" / "a.txt").read_text() == "one\n"
    assert (tmp_path / "copy" / "a.txt").stat().st_mtime_ns == 2
    assert os.access(tmp_path / "copy" / "below" / "b.sh", os.X_OK)


def test_links_are_copied_and_never_followed(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("of the host")
    (tree / "file").symlink_to(secret / "key")
    (tree / "directory").symlink_to(secret)
    copy_tree(tree, tmp_path / "copy")
    assert os.readlink(tmp_path / "copy" / "file") == str(secret / "key")
    assert (tmp_path / "copy" / "directory").is_symlink()
    found = subprocess.run(["grep", "-r", "of the host", str(tmp_path / "copy")], capture_output=True)
    assert found.stdout == b""


def test_sockets_are_left_out_and_pipes_are_recreated(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "s"))
        done = copy_tree(tree, tmp_path / "copy")
    assert done.left_out == 1
    assert not (tmp_path / "copy" / "s").exists()
    assert stat.S_ISFIFO((tmp_path / "copy" / "pipe").stat().st_mode)


def test_setuid_and_setgid_bits_are_not_copied(tree: Path, tmp_path: Path) -> None:
    (tree / "below" / "b.sh").chmod(0o6755)
    copy_tree(tree, tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy" / "below" / "b.sh").stat().st_mode) == 0o755


def test_holes_stay_holes(tree: Path, tmp_path: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.seek(512 << 20)
        file.write(b"end")
        file.seek(256 << 20)
        file.write(b"middle")
    copy_tree(tree, tmp_path / "copy")
    copy = tmp_path / "copy" / "sparse"
    assert copy.stat().st_size == (512 << 20) + 3
    assert copy.stat().st_blocks * 512 < 1 << 20
    with copy.open("rb") as file:
        file.seek(256 << 20)
        assert file.read(6) == b"middle"
        file.seek(512 << 20)
        assert file.read() == b"end"


def test_hard_links_stay_hard_links(tree: Path, tmp_path: Path) -> None:
    os.link(tree / "a.txt", tree / "below" / "again")
    copy_tree(tree, tmp_path / "copy")
    one, other = tmp_path / "copy" / "a.txt", tmp_path / "copy" / "below" / "again"
    assert one.samefile(other)
    assert not one.samefile(tree / "a.txt")


def test_a_second_copy_shares_unchanged_files(tree: Path, tmp_path: Path) -> None:
    settled(tree)
    first = copy_tree(tree, tmp_path / "first")
    times = (tree / "a.txt").stat()
    (tree / "a.txt").write_text("two\n")
    # A guest can reset the modification time and keep the size.
    os.utime(tree / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    second = copy_tree(tree, tmp_path / "second", Former(tmp_path / "first", first.marks))
    assert second.shared == 1
    assert (tmp_path / "second" / "below" / "b.sh").samefile(tmp_path / "first" / "below" / "b.sh")
    assert (tmp_path / "second" / "a.txt").read_text() == "two\n"
    assert (tmp_path / "first" / "a.txt").read_text() == "one\n"


def test_a_file_that_just_changed_is_not_marked_as_unchanged(tree: Path, tmp_path: Path) -> None:
    (tree / "a.txt").write_text("now\n")
    done = copy_tree(tree, tmp_path / "copy")
    assert b"a.txt" not in done.marks


def test_a_name_that_is_not_text_is_recognized(tree: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/below/\xff")).write_text("odd\n")
    settled(tree)
    first = copy_tree(tree, tmp_path / "first")
    assert set(first.marks) == {b"a.txt", b"below/b.sh", b"below/\xff"}
    second = copy_tree(tree, tmp_path / "second", Former(tmp_path / "first", first.marks))
    assert (second.files, second.shared) == (3, 3)


def test_a_tree_that_is_too_deep_is_an_error(tree: Path, tmp_path: Path) -> None:
    here = os.open(tree, os.O_RDONLY)
    for _ in range(DEEPEST + 10):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(OSError, match="deep") as caught:
        copy_tree(tree, tmp_path / "copy")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_directories_replaced_by_links_during_the_copy_are_not_followed(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("of the host")
    script = 'cd "$1"; while :; do mv below x; ln -s "$2" below; rm below; mv x below; done'
    swapper = subprocess.Popen(["bash", "-c", script, "hv", str(tree), str(secret)], stderr=subprocess.DEVNULL)
    try:
        for number in range(200):
            copy_tree(tree, tmp_path / f"copy{number}")
    finally:
        swapper.kill()
        swapper.wait()
    assert not [path for path in tmp_path.glob("copy*/**/key") if not path.parent.is_symlink()]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_raises_the_error_of_the_system(tree: Path, small: Path) -> None:
    (tree / "large").write_bytes(os.urandom(16 << 20))
    with pytest.raises(OSError, match="No space") as caught:
        copy_tree(tree, small / "copy")
    assert caught.value.errno == errno.ENOSPC


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Path]:
    """A file system that can share blocks."""
    file, place = tmp_path / "btrfs.img", tmp_path / "btrfs"
    place.mkdir()
    with file.open("wb") as image:
        image.truncate(160 << 20)
    try:
        made = subprocess.run(["mkfs.btrfs", "-q", str(file)], capture_output=True).returncode
    except FileNotFoundError:
        pytest.skip("there is no mkfs.btrfs")
    if made or subprocess.run(["mount", "-o", "loop", str(file), str(place)], capture_output=True).returncode:
        pytest.skip("mounting btrfs is not possible here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_copy_takes_no_space_where_blocks_can_be_shared(sharing: Path) -> None:
    (sharing / "tree").mkdir()
    (sharing / "tree" / "large").write_bytes(os.urandom(64 << 20))
    os.sync()
    before = os.statvfs(sharing).f_bfree
    for number in range(20):
        assert isinstance(copy_tree(sharing / "tree", sharing / f"copy{number}"), Copied)
    os.sync()
    taken = (before - os.statvfs(sharing).f_bfree) * os.statvfs(sharing).f_frsize
    assert taken < 8 << 20
    assert (sharing / "copy19" / "large").read_bytes() == (sharing / "tree" / "large").read_bytes()


UNREADABLE = """
import os, stat, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hiveyard.kit.copying import copy_tree
os.setgid(65534)
os.setuid(65534)
place = Path(sys.argv[1])
inner = place / "tree" / "closed" / "listed"
inner.mkdir(parents=True)
(inner / "file").write_text("secret")
os.link(inner / "file", place / "tree" / "open")
for number in range(200):
    (inner / str(number)).touch()
modes = [(inner / "file", 0o000), (inner, 0o600), (inner.parent, 0o000), (place / "tree", 0o200)]
for path, mode in modes:
    path.chmod(mode)
copies = [place / str(number) for number in range(4)]
with ThreadPoolExecutor() as pool:
    done = list(pool.map(lambda copy: copy_tree(place / "tree", copy), copies))
done.append(copy_tree(copies[0], place / "again"))
assert {(one.files, one.left_out) for one in done} == {(202, 0)}, done
for copy in (place / "tree", *copies, place / "again"):
    for path, mode in reversed(modes):
        path = copy / path.relative_to(place / "tree")
        assert stat.S_IMODE(path.lstat().st_mode) == mode, path
        path.chmod(0o700)
    assert (copy / "closed" / "listed" / "file").read_text() == "secret"
"""


FOREIGN = """
import os, sys
from pathlib import Path
from hiveyard.kit.copying import copy_tree
os.setgid(65534)
os.setuid(65534)
copy_tree(Path(sys.argv[1], "tree"), Path(sys.argv[1], "copy"))
"""


def test_files_without_read_permission_are_copied_with_their_mode() -> None:
    with TemporaryDirectory() as place:
        done = nobody(UNREADABLE, place)
        assert done.returncode == 0, done.stderr


def test_an_unreadable_file_of_another_user_is_an_error_with_its_path() -> None:
    with TemporaryDirectory() as place:
        below = Path(place, "tree", "below")
        below.mkdir(parents=True)
        (below / "file").touch(mode=0o600)
        done = nobody(FOREIGN, place)
        assert done.stderr.endswith("PermissionError: [Errno 13] Permission denied: 'below/file'\n"), done.stderr


def test_reserved_disk_space_stays_free_and_shared_files_need_none(tree: Path, tmp_path: Path) -> None:
    settled(tree)
    before = copy_tree(tree, tmp_path / "before")
    with pytest.raises(OSError, match="reserved"):
        copy_tree(tree, tmp_path / "another", reserve=1 << 60)
    again = copy_tree(tree, tmp_path / "again", Former(tmp_path / "before", before.marks), reserve=1 << 60)
    assert (again.files, again.shared) == (2, 2)
