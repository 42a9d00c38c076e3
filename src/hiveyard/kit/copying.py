"""Copy untrusted trees: no symlink is followed, no device or socket is made, holes stay holes.

Blocks are shared if the file system supports it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hiveyard.kit.permissions import entered, opened, settled

DEEPEST = 200
"""The largest depth of nested directories. Each level holds two descriptors."""
_FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)
_PIECE = 1 << 26
_RACY = 2 * 10**9  # nanoseconds: a file that just changed may change again within one tick of the clock
_INSIDE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Mark(NamedTuple):
    """The identity of a file's content. No program can set a change time."""

    inode: int
    changed_ns: int
    size: int


class Former(NamedTuple):
    """A previous copy that nobody has written to since. Files that have not changed are linked from there."""

    root: Path
    marks: Mapping[bytes, Mark]


@dataclass(slots=True)
class Copied:
    """The result of a copy.

    `shared` counts files that were linked from a previous copy, `left_out` counts sockets and devices, `written` is the
    bytes that the copy takes on disk. `marks`, by path within the tree, are for the next copy of the tree; paths are
    bytes because a name need not be text."""

    files: int = 0
    shared: int = 0
    written: int = 0
    left_out: int = 0
    marks: dict[bytes, Mark] = field(default_factory=dict)


def copy_tree(source: Path, target: Path, former: Former | None = None, *, reserve: int = 0) -> Copied:
    """Copy the directory `source` to `target`, which must not exist, with modes (without setuid and setgid), owners and
    times.

    Files that their owner may not read are copied too, if we own them. The tree may change during the copy: files that
    disappear are left out. `reserve` bytes of the disk stay free. Raises OSError of the system (ENOSPC, ...),
    PermissionError with the path within the tree, ENAMETOOLONG for directories that are more than DEEPEST deep. The
    files copied so far stay, and the caller removes them."""
    copying = _Copying(target, former, reserve)
    from_fd = opened(source, _INSIDE | os.O_DIRECTORY)
    try:
        target.mkdir(mode=0o700)
        into_fd = os.open(target, _INSIDE | os.O_DIRECTORY)
        try:
            copying.directory(from_fd, into_fd, "", 0)
        finally:
            os.close(into_fd)
    finally:
        os.close(from_fd)
    return copying.done


class _Copying:
    def __init__(self, target: Path, former: Former | None, reserve: int) -> None:
        self.done = Copied()
        self._reserve = reserve
        self._target = target
        self._former = former
        self._linked: dict[tuple[int, int], str] = {}
        self._began = time.time_ns()

    def directory(self, source: int, target: int, path: str, depth: int) -> None:
        if depth > DEEPEST:
            raise OSError(errno.ENAMETOOLONG, f"directories are more than {DEEPEST} deep", path[:200])
        with entered(source) as mode:
            with os.scandir(source) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                inner = f"{path}/{name}" if path else name
                try:
                    self._entry(source, target, name, inner, depth)
                except FileNotFoundError:
                    continue  # it was removed during the copy
                except PermissionError as error:
                    if error.filename != name:
                        raise
                    raise PermissionError(error.errno, error.strerror, inner) from error
        _set_metadata(target, os.fstat(source), mode)

    def _entry(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            self._file(source, target, name, path)
        elif kind == stat.S_IFDIR:
            self._below(source, target, name, path, depth)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFIFO:
            os.mkfifo(name, stat.S_IMODE(status.st_mode), dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        else:
            self.done.left_out += 1

    def _below(self, source: int, target: int, name: str, path: str, depth: int) -> None:
        try:
            inner = opened(name, _INSIDE | os.O_DIRECTORY, source)
        except (NotADirectoryError, OSError) as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                return  # it was replaced by something else during the copy
            raise
        try:
            os.mkdir(name, 0o700, dir_fd=target)
            copy = os.open(name, _INSIDE | os.O_DIRECTORY, dir_fd=target)
            try:
                self.directory(inner, copy, path, depth + 1)
            finally:
                os.close(copy)
        finally:
            os.close(inner)

    def _file(self, source: int, target: int, name: str, path: str) -> None:
        try:
            fd = opened(name, _INSIDE, source)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                return
            raise
        try:
            status = settled(fd)
            if stat.S_ISREG(status.st_mode):
                self._regular(fd, status, target, name, path)
        finally:
            os.close(fd)

    def _regular(self, fd: int, status: os.stat_result, target: int, name: str, path: str) -> None:
        self.done.files += 1
        mark = Mark(status.st_ino, status.st_ctime_ns, status.st_size)
        if status.st_ctime_ns < self._began - _RACY:
            self.done.marks[os.fsencode(path)] = mark
        if self._linked_again(status, target, name, path) or self._linked_from_former(mark, status, target, name, path):
            return
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            if not share_content(fd, copy):
                _check_space(copy, status.st_blocks * 512 + self._reserve if self._reserve else 0)
                copy_content(fd, copy)
                self.done.written += os.fstat(copy).st_blocks * 512
            _set_metadata(copy, status)
        finally:
            os.close(copy)

    def _linked_again(self, status: os.stat_result, target: int, name: str, path: str) -> bool:
        """Return whether the file is another name of a file that was copied already, and was linked to it."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        if (first := self._linked.setdefault(key, path)) == path:
            return False
        try:
            os.link(self._target / first, name, dst_dir_fd=target, follow_symlinks=False)
        except PermissionError:
            return False  # the directory of the first name may not be entered
        return True

    def _linked_from_former(self, mark: Mark, status: os.stat_result, target: int, name: str, path: str) -> bool:
        """Return whether the file is unchanged since the previous copy, and was linked from there."""
        key = os.fsencode(path)
        if self._former is None or self._former.marks.get(key) != mark or key not in self.done.marks:
            return False
        try:
            os.link(self._former.root / path, name, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES):
                return False
            raise
        self.done.shared += 1
        return True


def share_content(source: int, target: int) -> bool:
    """Make an empty file share the blocks of another. Return False if the file system does not support it."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def copy_content(source: int, target: int) -> bool:
    """Copy the content of a file into an empty one. Return True if blocks are shared, False if it was copied without
    holes."""
    if share_content(source, target):
        return True
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # only a hole is left
            raise
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        at = _copy_range(source, target, at, end) or size
    return False


def _check_space(target: int, needed: int) -> None:
    disk = os.fstatvfs(target)
    if needed > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, "the rest of the disk is reserved")


def _copy_range(source: int, target: int, at: int, end: int) -> int:
    """Copy a range of bytes. Return `end`, or 0 if the file ended before."""
    while at < end:
        try:
            done = os.copy_file_range(source, target, min(end - at, _PIECE), at, at)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            done = os.pwrite(target, os.pread(source, min(end - at, 1 << 20), at), at)
        if done == 0:
            return 0
        at += done
    return end


def _set_metadata(target: int, status: os.stat_result, mode: int | None = None) -> None:
    """Set owner, times and mode (unless given) as in `status`.

    Setuid and setgid bits are dropped, so that no file of a guest runs with the rights of another user."""
    now = os.fstat(target)
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode if mode is None else mode) & ~(stat.S_ISUID | stat.S_ISGID))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
