"""Sizes of trees on disk."""

from __future__ import annotations

import os
from pathlib import Path

from hiveyard.kit.copying import copy_tree
from hiveyard.kit.disk_usage import Measure
from hiveyard.kit.trees import remove_tree
from tests.kit.test_copying import sharing
from tests.kit.test_trees import nest

__all__ = ["sharing"]


def test_holes_take_nothing_and_names_of_one_file_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "full").write_bytes(os.urandom(1 << 20))
    with (tmp_path / "a" / "hole").open("wb") as file:
        file.truncate(1 << 30)
    os.link(tmp_path / "a" / "full", tmp_path / "b" / "full")
    measure = Measure()
    first, second = measure.tree(tmp_path / "a"), measure.tree(tmp_path / "b")
    assert 1 << 20 <= first < 2 << 20
    assert second < 64 << 10


def test_left_out_entries_and_link_targets_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "a" / "snapshots").mkdir(parents=True)
    (tmp_path / "a" / "snapshots" / "large").write_bytes(os.urandom(1 << 20))
    (tmp_path / "elsewhere").write_bytes(os.urandom(1 << 20))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    assert Measure().tree(tmp_path / "a", without=frozenset(["snapshots"])) < 64 << 10
    assert Measure().tree(tmp_path / "nothing") == 0


def test_deep_files_are_counted(tmp_path: Path) -> None:
    nest(tmp_path, 1500)
    deepest = Path(tmp_path, *["d"] * 1500)
    (deepest / "large").write_bytes(os.urandom(1 << 20))
    assert 1 << 20 <= Measure().tree(tmp_path) < 16 << 20
    remove_tree(tmp_path / "d")


def test_shared_blocks_count_once(sharing: Path) -> None:
    (sharing / "one").mkdir()
    (sharing / "one" / "large").write_bytes(os.urandom(16 << 20))
    for number in range(5):
        copy_tree(sharing / "one", sharing / f"copy{number}")
    os.sync()
    measure = Measure()
    sizes = [measure.tree(sharing / name) for name in ("one", "copy0", "copy1", "copy2")]
    assert sizes[0] >= 16 << 20
    assert max(sizes[1:]) < 1 << 20
