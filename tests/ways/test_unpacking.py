"""What stands where an archive is unpacked, when the archive does not come to its end."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.engine.unpacking import unpack

NEW = b"new" * 100_000


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(NEW), 0o640
            tar.addfile(member, io.BytesIO(NEW))
    return out.getvalue()


def test_a_copy_that_breaks_off_leaves_the_file_that_it_was_to_replace(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("precious")
    with pytest.raises(BadInput):
        unpack(io.BytesIO(packed("it")[:10_000]), tmp_path / "it")
    assert (tmp_path / "it").read_text() == "precious"
    assert os.listdir(tmp_path) == ["it"]


def test_a_copy_that_is_left_leaves_the_file_that_it_was_to_replace(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("precious")

    def leave(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(io.BytesIO(packed("it")), tmp_path / "it", leave)
    assert (tmp_path / "it").read_text() == "precious"
    assert os.listdir(tmp_path) == ["it"]


def test_a_whole_copy_takes_the_place_of_a_file_or_a_link_and_follows_none(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "it").symlink_to("other")
    for _ in range(2):
        unpack(io.BytesIO(packed("it")), tmp_path / "it")
        assert not (tmp_path / "it").is_symlink()
        assert (tmp_path / "it").read_bytes() == NEW
        assert (tmp_path / "it").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "other").read_text() == "precious"
