"""Unpack an untrusted archive into one directory and nowhere else.

Each name is resolved from that directory without following a link. Links are created last, as they are. Devices and
sockets are left out. No file gets more permissions than its owner's. Sizes are bounded by the free space, and memory by
limits of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from hiveyard.core.errors import BadInput, NoSpace
from hiveyard.kit.text import one_line

_RESERVE = 64 << 20  # bytes of the disk that stay free
_ENTRY = 4096  # bytes that an entry takes on disk at least
_PIECE = 1 << 20
_MAX_ENTRIES = 2_000_000
"""Maximum number of entries of one archive."""
_MAX_HEADER = 1 << 18
"""Maximum bytes before the content of one entry, because tarfile holds them in memory."""
_MAX_NAME_BYTES = 1 << 28
"""Maximum bytes of the names of links and directories, which are held in memory until the end."""
_MAX_GLOBAL_HEADERS = 64
"""Maximum number of headers for all entries: tarfile copies them for each entry."""
_MAX_TIME = 1 << 33
"""Maximum distance of a file's time from the epoch, in seconds."""
_MALFORMED = (tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, LookupError, RecursionError)
"""Errors that tarfile and the modules below it raise for a malformed archive."""


class Unpacked(NamedTuple):
    """The number of files, directories and links, their bytes, and what was left out."""

    entries: int
    size: int
    left_out: int


def unpack(
    archive: IO[bytes],
    target: Path,
    report: Callable[[int], None] = lambda size: None,
    *,
    reserve: int = _RESERVE,
    umask: int = 0,
) -> Unpacked:
    """Read a tar from a stream. Its first entry becomes `target`, which may exist if both are directories or neither
    is; all other entries are below it. `reserve` bytes of the disk stay free. New entries have the archive's modes
    without the bits of `umask`; existing directories keep theirs. Raises BadInput for a malformed archive, NoSpace,
    OSError."""
    return _Unpacking(target, report, max(reserve, _RESERVE), 0o777 & ~umask).run(archive)


class _Unpacking:
    def __init__(self, target: Path, report: Callable[[int], None], reserve: int, mode: int) -> None:
        self._target = target
        self._mode = mode
        self._report = report
        self._space = shutil.disk_usage(target.parent).free - reserve
        self._entries = self._size = self._left_out = self._names = 0
        self._root: tuple[str, ...] | None = None
        self._links: list[tuple[tuple[str, ...], str]] = []
        self._modes: list[tuple[tuple[str, ...], int]] = []

    def run(self, archive: IO[bytes]) -> Unpacked:
        parent = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            stream = _Stream(archive)
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # tarfile keeps all of them
                    with stream.content():
                        self._add(parent, tar, member)
        except _MALFORMED as error:
            raise BadInput(f"the archive is malformed or incomplete: {one_line(str(error))}") from error
        else:
            self._finish(parent)
        finally:
            os.close(parent)
        return Unpacked(self._entries, self._size, self._left_out)

    def _add(self, parent: int, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        self._entries += 1
        self._check_space()
        if self._entries > _MAX_ENTRIES or len(tar.pax_headers) > _MAX_GLOBAL_HEADERS:
            raise BadInput(f"the archive has more than {_MAX_ENTRIES} entries, or too many global headers")
        if member.isdir():
            self._count_names(len(member.name))
            self._directory(parent, path, member.mode & self._mode)
        elif member.isreg():
            self._file(parent, path, tar, member)
        elif member.issym():
            if "\0" in member.linkname:
                raise BadInput(f"the target of a link in the archive is not a path: {one_line(member.linkname)!r}")
            self._count_names(len(member.name) + len(member.linkname))
            self._links.append((path, member.linkname))
        elif member.islnk():
            self._hard_link(parent, path, self._path(member.linkname))
        else:
            self._left_out += 1

    def _path(self, name: str) -> tuple[str, ...]:
        """Return the path of an entry, relative to the target's parent."""
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts or name.startswith("/") or "\0" in name:
            raise BadInput(f"the archive contains a path outside of its directory: {one_line(name)!r}")
        if self._root is None:
            self._root = parts
        if parts[: len(self._root)] != self._root:
            raise BadInput(f"the archive contains a path outside of its directory: {one_line(name)!r}")
        return (self._target.name, *parts[len(self._root) :])

    def _directory(self, parent: int, path: tuple[str, ...], mode: int) -> None:
        with _open_directory(parent, path[:-1]) as above:
            try:
                os.mkdir(path[-1], 0o700, dir_fd=above)
            except FileExistsError:
                with _open_directory(above, path[-1:]):
                    return  # it is a directory
            self._modes.append((path, mode))

    def _file(self, parent: int, path: tuple[str, ...], tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        source = _content(tar, member)
        with _open_directory(parent, path[:-1]) as above, _replace_file(above, path[-1]) as fd:
            # Only the data of a sparse file is read: its holes may be larger than the disk.
            for at, size in _extents(tar, member):
                os.lseek(fd, at, os.SEEK_SET)
                self._copy(source, size, fd)
            _extend(fd, member)
            os.fchmod(fd, member.mode & self._mode)
            changed = member.mtime if -_MAX_TIME < member.mtime < _MAX_TIME else 0
            os.utime(fd, (changed, changed))

    def _copy(self, source: IO[bytes], size: int, fd: int) -> None:
        while size > 0:
            piece = source.read(min(size, _PIECE))
            if not piece:
                raise EOFError("the archive ends in the middle of a file")
            self._count(len(piece))
            _write(fd, piece)
            size -= len(piece)

    def _hard_link(self, parent: int, path: tuple[str, ...], other: tuple[str, ...]) -> None:
        """Create a hard link to a file that came earlier in the archive."""
        with _open_directory(parent, path[:-1]) as above, _open_directory(parent, other[:-1]) as there:
            if not stat.S_ISREG(os.stat(other[-1], dir_fd=there, follow_symlinks=False).st_mode):
                raise BadInput(f"the target of a hard link in the archive is not a file: {one_line(other[-1])!r}")
            _clear(above, path[-1])
            os.link(other[-1], path[-1], src_dir_fd=there, dst_dir_fd=above, follow_symlinks=False)

    def _count_names(self, size: int) -> None:
        self._names += size
        if self._names > _MAX_NAME_BYTES:
            raise BadInput(f"the names of links and directories in the archive are longer than {_MAX_NAME_BYTES} bytes")

    def _count(self, size: int) -> None:
        self._size += size
        self._report(size)
        self._check_space()

    def _check_space(self) -> None:
        if self._size + self._entries * _ENTRY > self._space:
            raise NoSpace(f"the archive needs more space than the {self._space} bytes that are free", hint="df -h")

    def _finish(self, parent: int) -> None:
        if self._root is None:
            raise BadInput("the archive is empty")
        for path, to in self._links:
            with _open_directory(parent, path[:-1]) as above:
                _clear(above, path[-1])
                os.symlink(to, path[-1], dir_fd=above)
        # The deepest come first: a directory that becomes read-only already has all its entries.
        for path, mode in sorted(self._modes, key=lambda entry: -len(entry[0])):
            with _open_directory(parent, path) as made:
                os.fchmod(made, mode)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """Return a stream of a file's data; for a sparse file, of its extents one after the other."""
    source: IO[bytes] | None
    if member.sparse:
        source = tar.fileobj  # type: ignore[assignment]
        assert source is not None
        source.seek(member.offset_data)
    else:
        source = tar.extractfile(member)
        assert source is not None
    return source


def _extents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Sequence[tuple[int, int]]:
    """Return the offset and size of each extent of a file."""
    found: Sequence[tuple[int, int]] = member.sparse or ((0, member.size),)  # type: ignore[assignment]
    inside = all(0 <= at <= member.size and 0 <= size <= member.size - at for at, size in found)
    if not inside or sum(size for _, size in found) > tar.offset - member.offset_data:
        raise BadInput(f"the archive describes the holes of a file wrongly: {one_line(member.name)!r}")
    return found


def _extend(fd: int, member: tarfile.TarInfo) -> None:
    """Extend a file to its size: it may end with a hole."""
    try:
        os.ftruncate(fd, member.size)
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.EINVAL):
            raise
        raise BadInput(f"a file of {member.size} bytes is too large here: {one_line(member.name)!r}") from error


class _Stream:
    """The stream of an archive. At most _MAX_HEADER bytes are read between the contents of two entries."""

    def __init__(self, archive: IO[bytes]) -> None:
        self._archive = archive
        self._left: int | None = _MAX_HEADER

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        self._left = None
        yield
        self._left = _MAX_HEADER

    def read(self, size: int) -> bytes:
        data = self._archive.read(size)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise BadInput(f"the header of an entry of the archive is longer than {_MAX_HEADER} bytes")
        return data


@contextlib.contextmanager
def _open_directory(root: int, path: tuple[str, ...]) -> Iterator[int]:
    """Open a directory below another without following links."""
    here = os.dup(root)
    try:
        for part in path:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        yield here
    finally:
        os.close(here)


@contextlib.contextmanager
def _replace_file(above: int, name: str) -> Iterator[int]:
    """Yield a new file that replaces the entry `name` when the block succeeds."""
    part = f".hv-copy.{os.getpid()}.{secrets.token_hex(6)}"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=above)
    try:
        yield fd
        os.replace(part, name, src_dir_fd=above, dst_dir_fd=above)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=above)
        raise
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _clear(above: int, name: str) -> None:
    """Remove the entry that a link replaces. A directory stays, and the next step fails."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=above)
