"""What a hostile guest cannot take of the host by what serves its /session."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiveyard.machines.fuse_server.files import Files
from hiveyard.machines.fuse_server.tree import Bounds, Tree
from tests.machines.fuse_server.kernel import (
    CREATE,
    FORGET,
    LOOKUP,
    MKDIR,
    OPEN,
    OPENDIR,
    READ,
    READDIR,
    READDIRPLUS,
    RELEASE,
    ROOT,
    Answer,
    Kernel,
    dirents,
    message,
    reading,
    serving,
)

MIB = 1 << 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "session"
    path.mkdir()
    return path


@pytest.fixture
def kernel(directory: Path, tmp_path: Path) -> Iterator[Kernel]:
    with serving(directory, tmp_path / "control") as kernel:
        yield kernel


def crowded(directory: Path, count: int) -> Path:
    """A directory of so many files with the longest of names."""
    for number in range(count):
        (directory / f"{number:0255}").touch()
    return directory


def test_answers_that_nobody_takes_are_not_made(kernel: Kernel, directory: Path) -> None:
    data = os.urandom(128 << 10)
    (directory / "large").write_bytes(data)
    handle = kernel.opened(kernel.lookup("large"))
    count = 2000
    kernel.send(b"".join(message(READ, ROOT, reading(handle, 0, len(data))) for _ in range(count)))
    for _ in range(count):
        assert kernel.answer() == Answer(0, data)
    assert kernel.memory() < 100 * MIB
    assert kernel.names(kernel.opendir()) == {"large"}


def test_directories_that_are_being_read_take_so_much_and_not_more(kernel: Kernel, directory: Path) -> None:
    crowded(directory, 10_000)
    codes = []
    for _ in range(120):
        handle = kernel.opendir()
        codes.append(kernel.call(READDIR, ROOT, reading(handle, 0, 4096)).code)
    assert set(codes) == {0, -errno.ENOMEM}
    assert kernel.memory() < 250 * MIB
    # One that is closed makes room for another.
    kernel.call(RELEASE, ROOT, struct.pack("<QIIQ", handle - 119, 0, 0, 0))
    assert len(kernel.names(handle)) == 10_000


def test_one_answer_is_of_a_size_that_a_kernel_can_ask_for(kernel: Kernel, directory: Path) -> None:
    crowded(directory, 2000)
    handle = kernel.opendir()
    for verb in (READDIR, READDIRPLUS):
        done = kernel.call(verb, ROOT, reading(handle, 0, (1 << 32) - 1))
        assert done.code == 0
        assert 0 < len(done.body) <= 256 << 10


def test_a_guest_with_more_files_open_than_a_select_takes_can_be_frozen(kernel: Kernel, directory: Path) -> None:
    (directory / "file").touch()
    node = kernel.lookup("file")
    for _ in range(1100):
        kernel.opened(node)
    assert len(json.loads(kernel.quiet())["opened"]) == 1100


def test_what_takes_more_memory_than_there_is_is_an_error_for_the_guest_alone(kernel: Kernel, directory: Path) -> None:
    crowded(directory, 50)
    assert kernel.names(kernel.opendir())
    limits = Path(f"/proc/{kernel.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max data size")]
    assert line.split()[3:5] == [str(1 << 30)] * 2
    # As when all of that is taken but for 1 MiB.
    taken = next(
        int(line.split()[1]) << 10
        for line in Path(f"/proc/{kernel.pid}/status").read_text().splitlines()
        if line.startswith("VmData:")
    )
    resource.prlimit(kernel.pid, resource.RLIMIT_DATA, (taken + MIB, 1 << 30))
    crowded(directory, 20_000)
    handle = kernel.opendir()
    assert kernel.call(READDIR, ROOT, reading(handle, 0, 4096)).code == -errno.ENOMEM
    assert kernel.lookup(f"{7:0255}")


class Guest:
    """Questions to `Files` itself, within small bounds."""

    def __init__(self, directory: Path, **bounds: int) -> None:
        self._files = Files(Tree(os.open(directory, os.O_PATH | os.O_DIRECTORY), Bounds(**bounds)))

    def call(self, verb: int, node: int, data: bytes) -> Answer:
        answer = self._files.answer(message(verb, node, data))
        return Answer(struct.unpack_from("<Ii", answer)[1], answer[16:]) if answer else Answer(0, b"")

    def lookup(self, name: str) -> Answer:
        return self.call(LOOKUP, ROOT, name.encode() + b"\0")

    def close(self) -> None:
        for handle in list(self._files.tree.opened):
            self._files.tree.release(handle)
        os.close(self._files.tree.root)


@pytest.fixture
def guest(directory: Path) -> Iterator[Guest]:
    guest = Guest(directory, known=10, opened=3)
    yield guest
    guest.close()


def test_a_guest_that_forgets_nothing_learns_no_more(guest: Guest, directory: Path) -> None:
    for number in range(20):
        (directory / str(number)).touch()
    answers = [guest.lookup(str(number)) for number in range(20)]
    assert [answer.code for answer in answers] == [0] * 9 + [-errno.ENOMEM] * 11
    # What it knows it may ask for again; and it makes nothing that it could not know.
    assert guest.lookup("3").code == 0
    assert guest.call(MKDIR, ROOT, struct.pack("<II", 0o755, 0) + b"new\0").code == -errno.ENOMEM
    assert guest.call(CREATE, ROOT, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0").code == -errno.ENOMEM
    assert not (directory / "new").exists()
    # A list tells names all the same.
    (handle,) = struct.unpack_from("<Q", guest.call(OPENDIR, ROOT, struct.pack("<II", 0, 0)).body)
    listed = dirents(guest.call(READDIRPLUS, ROOT, reading(handle, 0, 1 << 17)).body, plus=True)
    assert {name for _, name in listed} == {b".", b"..", *(b"%d" % number for number in range(20))}
    (node,) = struct.unpack_from("<Q", answers[0].body)
    guest.call(FORGET, node, struct.pack("<Q", 1))
    assert guest.lookup("15").code == 0
    assert guest.lookup("16").code == -errno.ENOMEM


def test_the_names_of_one_file_are_counted_too(guest: Guest, directory: Path) -> None:
    (directory / "0").touch()
    for number in range(1, 20):
        os.link(directory / "0", directory / str(number))
    codes = [guest.lookup(str(number)).code for number in range(20)]
    assert codes == [0] * 10 + [-errno.ENOMEM] * 10


def test_a_guest_has_so_many_files_open_and_no_more(guest: Guest, directory: Path) -> None:
    (directory / "file").touch()
    (node,) = struct.unpack_from("<Q", guest.lookup("file").body)
    opening = struct.pack("<II", os.O_RDONLY, 0)
    done = [guest.call(OPEN, node, opening) for _ in range(3)]
    assert [answer.code for answer in done] == [0] * 3
    assert guest.call(OPEN, node, opening).code == -errno.EMFILE
    assert guest.call(OPENDIR, ROOT, opening).code == -errno.EMFILE
    assert guest.call(CREATE, ROOT, struct.pack("<IIII", os.O_RDWR, 0o644, 0, 0) + b"new\0").code == -errno.EMFILE
    assert not (directory / "new").exists()
    guest.call(RELEASE, node, done[0].body[:8] + bytes(16))
    assert guest.call(OPEN, node, opening).code == 0
