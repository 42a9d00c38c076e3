"""What a fork's server begins with: the table of files of the machine that was frozen."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.machines.fuse_server.kernel import GO, READ, ROOT, UNLINK, WRITE, Answer, Kernel, reading, serving


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "session"
    path.mkdir()
    return path


def frozen(kernel: Kernel, place: Path) -> Path:
    """The table, and the files that have no name any more, as a snapshot keeps them."""
    place.mkdir()
    table = kernel.quiet()
    (place / "table.json").write_bytes(table)
    for handle, _, _, _, fd in json.loads(table)["opened"]:
        if fd >= 0:
            shutil.copyfile(f"/proc/{kernel.pid}/fd/{fd}", place / str(handle))
    return place


def test_a_fork_goes_on_with_the_files_that_were_open_each_in_its_own_directory(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "named").write_bytes(b"of the parent")
    (directory / "gone").write_bytes(b"x" * 100_000)
    with serving(directory, tmp_path / "control") as parent:
        named, gone = (parent.opened(parent.lookup(name)) for name in ("named", "gone"))
        listing = parent.opendir()
        assert parent.call(UNLINK, ROOT, b"gone\0").code == 0
        table = frozen(parent, tmp_path / "table")
    fork = tmp_path / "fork"
    shutil.copytree(directory, fork)
    with serving(fork, tmp_path / "control", table) as child:
        assert child.answer().code == GO
        assert child.call(WRITE, ROOT, reading(named, 0, 6) + b"OF THE").code == 0
        assert child.call(READ, ROOT, reading(gone, 99_990, 100)) == Answer(0, b"x" * 10)
        assert child.call(WRITE, ROOT, reading(gone, 0, 1) + b"y").code == 0
        assert child.names(listing) == {"named"}
    assert (fork / "named").read_bytes() == b"OF THE parent"
    assert (directory / "named").read_bytes() == b"of the parent"
    assert sorted(path.name for path in table.iterdir()) == [str(gone), "table.json"]


def test_a_file_without_a_name_takes_no_memory_of_the_host_and_no_more_disk_than_it_did(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "gone").touch()
    with serving(directory, tmp_path / "control") as parent:
        gone = parent.opened(parent.lookup("gone"))
        assert parent.call(UNLINK, ROOT, b"gone\0").code == 0
        table = frozen(parent, tmp_path / "table")
    with (table / str(gone)).open("r+b") as file:
        file.seek(200 << 20)
        file.write(b"after a hole")
    with serving(directory, tmp_path / "control", table) as child:
        assert child.answer().code == GO
        assert child.call(READ, ROOT, reading(gone, 200 << 20, 100)) == Answer(0, b"after a hole")
        held = [path for path in Path(f"/proc/{child.pid}/fd").iterdir() if os.stat(path).st_size > 200 << 20]
        assert [os.stat(path).st_dev for path in held] == [table.stat().st_dev]
        assert os.stat(held[0]).st_blocks * 512 < 1 << 20
