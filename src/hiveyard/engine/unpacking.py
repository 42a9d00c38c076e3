"""An archive from a stranger, unpacked into one place and nowhere else.

Each name is walked from that place on without following a link; links are made as they are, when all else is there;
devices and sockets are left out; no file gets more rights than its owner's could give; sizes are bounded by the space.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from hiveyard.core.errors import BadInput, NoSpace
from hiveyard.kit.text import one_line

_RESERVE = 64 << 20  # bytes of the disk that are left free
_PIECE = 1 << 20
_MOST = 2_000_000
"""Entries of one archive."""


class Unpacked(NamedTuple):
    """How many files, directories and links there were, of how many bytes; and what was left out."""

    entries: int
    size: int
    left_out: int


def unpack(archive: IO[bytes], target: Path, report: Callable[[int], None] = lambda size: None) -> Unpacked:
    """Read a tar from a stream: its first entry becomes `target`, which may exist if both are directories, or both are
    none; all others lie in it. Raises BadInput for what is no such archive, NoSpace, OSError."""
    return _Unpacking(target, report).run(archive)


class _Unpacking:
    def __init__(self, target: Path, report: Callable[[int], None]) -> None:
        self._target = target
        self._report = report
        self._room = shutil.disk_usage(target.parent).free - _RESERVE
        self._entries = self._size = self._left_out = 0
        self._root: tuple[str, ...] | None = None
        self._links: list[tuple[tuple[str, ...], str]] = []
        self._modes: list[tuple[tuple[str, ...], int]] = []

    def run(self, archive: IO[bytes]) -> Unpacked:
        parent = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with tarfile.open(fileobj=archive, mode="r|", errorlevel=2) as tar:
                for member in tar:
                    self._add(parent, tar, member)
        except (tarfile.TarError, EOFError) as error:
            raise BadInput(f"this is no whole archive: {one_line(str(error))}") from error
        else:
            self._finish(parent)
        finally:
            os.close(parent)
        return Unpacked(self._entries, self._size, self._left_out)

    def _add(self, parent: int, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        self._entries += 1
        if self._entries > _MOST:
            raise BadInput(f"the archive has more than {_MOST} entries")
        if member.isdir():
            self._directory(parent, path)
            self._modes.append((path, member.mode & 0o777))
        elif member.isreg():
            self._file(parent, path, tar, member)
        elif member.issym():
            self._links.append((path, member.linkname))
        elif member.islnk():
            self._same(parent, path, self._path(member.linkname))
        else:
            self._left_out += 1

    def _path(self, name: str) -> tuple[str, ...]:
        """Where an entry goes, from the target's parent on."""
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts or name.startswith("/") or "\0" in name:
            raise BadInput(f"the archive names a place outside of itself: {one_line(name)!r}")
        if self._root is None:
            self._root = parts
        if parts[: len(self._root)] != self._root:
            raise BadInput(f"the archive names a place outside of itself: {one_line(name)!r}")
        return (self._target.name, *parts[len(self._root) :])

    def _directory(self, parent: int, path: tuple[str, ...]) -> None:
        with _opened(parent, path[:-1]) as above:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path[-1], 0o700, dir_fd=above)
            with _opened(above, path[-1:]) as made:
                os.fchmod(made, 0o700)

    def _file(self, parent: int, path: tuple[str, ...], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        source = tar.extractfile(member)
        assert source is not None
        with _opened(parent, path[:-1]) as above:
            _clear(above, path[-1])
            fd = os.open(path[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=above)
        with os.fdopen(fd, "wb", buffering=0) as file:
            while piece := source.read(_PIECE):
                self._count(len(piece))
                file.write(piece)
            os.fchmod(fd, member.mode & 0o777)
            os.utime(fd, (member.mtime, member.mtime))

    def _same(self, parent: int, path: tuple[str, ...], other: tuple[str, ...]) -> None:
        """A second name of a file that is in the archive already."""
        with _opened(parent, path[:-1]) as above, _opened(parent, other[:-1]) as there:
            if not stat.S_ISREG(os.stat(other[-1], dir_fd=there, follow_symlinks=False).st_mode):
                raise BadInput(f"the archive links to what is no file: {one_line(other[-1])!r}")
            _clear(above, path[-1])
            os.link(other[-1], path[-1], src_dir_fd=there, dst_dir_fd=above, follow_symlinks=False)

    def _count(self, size: int) -> None:
        self._size += size
        self._report(size)
        if self._size > self._room:
            raise NoSpace(f"there is no room for what is in the archive: more than {self._room} bytes", hint="df -h")

    def _finish(self, parent: int) -> None:
        if self._root is None:
            raise BadInput("the archive is empty")
        for path, to in self._links:
            with _opened(parent, path[:-1]) as above:
                _clear(above, path[-1])
                os.symlink(to, path[-1], dir_fd=above)
        # The deepest first: one that may not be written to has got all that is in it.
        for path, mode in sorted(self._modes, key=lambda entry: -len(entry[0])):
            with _opened(parent, path) as made:
                os.fchmod(made, mode)


@contextlib.contextmanager
def _opened(root: int, path: tuple[str, ...]) -> Iterator[int]:
    """A directory below another, reached through no link."""
    here = os.dup(root)
    try:
        for part in path:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        yield here
    finally:
        os.close(here)


def _clear(above: int, name: str) -> None:
    """Make room for a file; a directory in its place stays, and is an error of the next step."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=above)
