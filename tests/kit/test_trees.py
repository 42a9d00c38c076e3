"""Walks and removals of trees that a guest made."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hiveyard.kit.trees import remove_tree, walk
from tests.support.nobody import nobody


def nest(place: Path, depth: int) -> None:
    """Make nested directories of a depth, with a file in each."""
    here = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(os.open("f", os.O_CREAT, dir_fd=inner))
        os.close(here)
        here = inner
    os.close(here)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.mark.usefixtures("few_descriptors")
@pytest.mark.parametrize("depth", [1, 64, 65, 66, 1500, 5000])  # 5000: paths too long for any system call
def test_trees_of_any_depth_are_walked_and_removed(tree: Path, depth: int) -> None:
    nest(tree, depth)
    (tree / "beside").mkdir()
    (tree / "beside" / "f").touch()
    seen = list(walk(tree))
    assert len(seen) == depth + 2
    assert sum(len(files) for _, files, _ in seen) == depth + 1
    remove_tree(tree)
    assert not tree.exists()


def test_each_directory_is_yielded_once_and_before_its_content(tree: Path) -> None:
    for path in ("a/b/c", "a/d", "e"):
        (tree / path).mkdir(parents=True)
        (tree / path / "f").touch()
    (tree / "link").symlink_to("a")
    met = []
    for directories, files, at in walk(tree):
        met.append(os.path.relpath(os.readlink(f"/proc/self/fd/{at}"), tree))
        assert sorted(os.listdir(at)) == sorted(directories + files)
    assert sorted(met) == [".", "a", "a/b", "a/b/c", "a/d", "e"]
    assert all(met.index(os.path.dirname(path) or ".") < met.index(path) for path in met[1:])


def test_a_removed_name_is_not_entered(tree: Path) -> None:
    for path in ("a/b", "c/d"):
        (tree / path).mkdir(parents=True)
    seen = 0
    for directories, _, _ in walk(tree):
        directories[:] = [name for name in directories if name != "a"]
        seen += 1
    assert seen == 3


def test_a_directory_that_is_moved_during_the_walk_does_not_lead_outside(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "else" / "secret").mkdir(parents=True)
    nest(tree, 100)
    for name in ("x", "y"):
        (tree / name).mkdir()
    deep = tree.joinpath(*["d"] * 90)
    met = []
    for _, _, at in walk(tree):
        met.append(os.readlink(f"/proc/self/fd/{at}"))
        if len(Path(met[-1]).relative_to(tmp_path).parts) == 96:
            deep.rename(tmp_path / "else" / "deep")
    assert not [path for path in met if "secret" in path]
    assert {Path(path).name for path in met} >= {"x", "y"}


def test_links_are_removed_and_not_followed(tree: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "below").mkdir(parents=True)
    (kept / "file").write_text("of the host")
    (tree / "a").mkdir()
    (tree / "a" / "file").symlink_to(kept / "file")
    (tree / "a" / "directory").symlink_to(kept)
    os.mkfifo(tree / "a" / "pipe")
    remove_tree(tree)
    assert not tree.exists()
    link = tmp_path / "link"
    link.symlink_to(kept)
    remove_tree(link)
    assert not link.is_symlink()
    assert (kept / "file").read_text() == "of the host"
    assert (kept / "below").is_dir()


def test_directories_replaced_by_links_during_removal_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    script = 'cd "$1"; while :; do mkdir -p t/a/b; touch t/a/b/f; mv -T t/a t/x; ln -s "$2" t/a; rm -rf t; done'
    words = ["bash", "-c", script, "hv", str(tmp_path), str(kept)]
    (kept / "file").touch()
    swapper = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            remove_tree(tmp_path / "t", quiet=True)
    finally:
        swapper.kill()
        swapper.wait()
    assert (kept / "file").exists()


def test_an_absent_path_is_a_success_and_a_file_is_removed(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    remove_tree(tmp_path / "nowhere" / "nothing")
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


TAKEN = """
import os, sys
from pathlib import Path
from hiveyard.kit.trees import remove_tree
os.setgid(65534)
os.setuid(65534)
tree = Path(sys.argv[1])
(tree / "a" / "b" / "c").mkdir(parents=True)
(tree / "a" / "b" / "c" / "f").touch()
for path in ("a/b/c", "a/b", "a"):
    (tree / path).chmod(0o000)
remove_tree(tree / "a")
assert list(tree.iterdir()) == []
"""


def test_directories_without_write_permission_are_removed() -> None:
    with TemporaryDirectory() as place:
        done = nobody(TAKEN, place)
        assert done.returncode == 0, done.stderr


def test_an_entry_that_cannot_be_removed_is_an_error_and_all_others_are_removed(tree: Path) -> None:
    for path in ("a/b", "c/d/e"):
        (tree / path).mkdir(parents=True)
        (tree / path / "f").touch()
    stays = tree / "a" / "b"
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stays)]).returncode:
        pytest.skip("mounting needs root")
    try:
        (stays / "of another").touch()
        with pytest.raises(OSError, match="busy"):
            remove_tree(tree)
        remove_tree(tree, quiet=True)
        assert [path.name for path in tree.iterdir()] == ["a"]
    finally:
        subprocess.run(["umount", str(stays)], check=True)
    remove_tree(tree)
    assert not tree.exists()
