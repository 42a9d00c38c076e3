"""Unpack archives: incomplete copies, sparse files, and modes."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.machines.shared.unpacking import unpack

NEW = b"new" * 100_000


def packed(*names: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(NEW), 0o640
            tar.addfile(member, io.BytesIO(NEW))
    return out.getvalue()


def test_a_failed_copy_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("precious")
    with pytest.raises(BadInput):
        unpack(io.BytesIO(packed("it")[:10_000]), tmp_path / "it")
    assert (tmp_path / "it").read_text() == "precious"
    assert os.listdir(tmp_path) == ["it"]


def test_an_interrupted_copy_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("precious")

    def leave(size: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(io.BytesIO(packed("it")), tmp_path / "it", leave)
    assert (tmp_path / "it").read_text() == "precious"
    assert os.listdir(tmp_path) == ["it"]


def test_a_complete_copy_replaces_a_file_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "it").symlink_to("other")
    for _ in range(2):
        unpack(io.BytesIO(packed("it")), tmp_path / "it")
        assert not (tmp_path / "it").is_symlink()
        assert (tmp_path / "it").read_bytes() == NEW
        assert (tmp_path / "it").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "other").read_text() == "precious"


def with_holes(said: str, size: object, data: bytes = b"") -> bytes:
    """Return an archive of one sparse file whose map is `said`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("GNUSparseFile.0/it")
        content = said.encode().ljust(512, b"\0") + data
        member.size = len(content)
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "it",
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_existing_directories_keep_their_modes_and_new_entries_respect_the_umask(tmp_path: Path) -> None:
    (tmp_path / "it").mkdir(mode=0o750)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind in (("it", tarfile.DIRTYPE), ("it/new", tarfile.DIRTYPE), ("it/file", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, 0o777
            tar.addfile(member)
    unpack(io.BytesIO(out.getvalue()), tmp_path / "it", umask=0o027)
    modes = {path: (tmp_path / path).stat().st_mode & 0o777 for path in ("it", "it/new", "it/file")}
    assert modes == {"it": 0o750, "it/new": 0o750, "it/file": 0o750}


def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    at = 40 << 30
    found = unpack(io.BytesIO(with_holes(f"2\n0\n3\n{at}\n4\n", at + 100, b"onefour")), tmp_path / "it")
    assert found.size == 7
    assert (tmp_path / "it").stat().st_size == at + 100
    assert (tmp_path / "it").stat().st_blocks * 512 < 1 << 20
    with (tmp_path / "it").open("rb") as file:
        assert file.read(4) == b"one\0"
        file.seek(at)
        assert file.read() == b"four" + bytes(96)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("1\n-5\n3\n", 100),
        ("1\n99\n3\n", 100),
        ("1\n0\n-3\n", 100),
        ("1\n0\n3\n", 1 << 62),
        ("1\n0\n3\n", 10**30),
        ("1\n0\n3\n", -1),
        ("1000000000000\n0\n3\n", 100),
        ("many", 100),
        ("1\n0\n3000\n", 10_000),
    ],
)
def test_impossible_holes_are_refused_and_leave_nothing(said: str, size: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        unpack(io.BytesIO(with_holes(said, size, b"onetwo")), tmp_path / "it")
    assert os.listdir(tmp_path) == []
