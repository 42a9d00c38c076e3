"""Trees that somebody else wrote, copied without believing them: no link is followed, no device or socket is made,
holes stay holes, and blocks are shared where the file system can."""

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
"""Directories within each other; each level holds two descriptors."""
_FICLONE = 0x40049409
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)
_PIECE = 1 << 26
_RACY = 2 * 10**9  # nanoseconds: a file that was just changed may change again within one tick of the clock
_INSIDE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Mark(NamedTuple):
    """What tells a file's content apart from any other: no program can set a change time."""

    inode: int
    changed_ns: int
    size: int


class Former(NamedTuple):
    """A copy made before, which nobody has written to since: files that have not changed are taken from there."""

    root: Path
    marks: Mapping[bytes, Mark]


@dataclass(slots=True)
class Copied:
    """What was copied. `shared` counts files that were taken from a former copy, `left_out` sockets and devices;
    `written` is the bytes that it took on disk; `marks`, by path within the tree, are for the next copy of it: a name
    need not be text."""

    files: int = 0
    shared: int = 0
    written: int = 0
    left_out: int = 0
    marks: dict[bytes, Mark] = field(default_factory=dict)


def copy_tree(source: Path, target: Path, former: Former | None = None, *, reserve: int = 0) -> Copied:
    """Copy the directory `source` to `target`, which must not exist; modes (without setuid), owners and times too.

    What its owner may not read is copied, too, when that is us. The tree may change meanwhile: what goes away is left
    out. `reserve` bytes of the disk stay free. Raises OSError as the system gives it (ENOSPC, ...), PermissionError
    with the path within the tree, ENAMETOOLONG for directories more than DEEPEST deep; what was copied so far stays,
    for the caller to remove."""
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
                    continue  # it went away
                except PermissionError as error:
                    if error.filename != name:
                        raise
                    raise PermissionError(error.errno, error.strerror, inner) from error
        _dress(target, os.fstat(source), mode)

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
                return  # it was swapped for something else while we looked
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
        if self._again(status, target, name, path) or self._as_before(mark, status, target, name, path):
            return
        copy = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            if not share_content(fd, copy):
                _check_room(copy, status.st_blocks * 512 + self._reserve if self._reserve else 0)
                copy_content(fd, copy)
                self.done.written += os.fstat(copy).st_blocks * 512
            _dress(copy, status)
        finally:
            os.close(copy)

    def _again(self, status: os.stat_result, target: int, name: str, path: str) -> bool:
        """A further name of a file that is copied already."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        if (first := self._linked.setdefault(key, path)) == path:
            return False
        try:
            os.link(self._target / first, name, dst_dir_fd=target, follow_symlinks=False)
        except PermissionError:
            return False  # nobody may go into the directory where the first one is
        return True

    def _as_before(self, mark: Mark, status: os.stat_result, target: int, name: str, path: str) -> bool:
        """Taken from the former copy, when it is the same to the bit."""
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
    """Have another, empty file share the blocks of one; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def copy_content(source: int, target: int) -> bool:
    """The bytes of one file into another, empty one: their blocks shared (True), or else copied without the holes."""
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


def _check_room(target: int, wanted: int) -> None:
    disk = os.fstatvfs(target)
    if wanted > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, "a part of the disk is kept free")


def _copy_range(source: int, target: int, at: int, end: int) -> int:
    """Returns `end`, or 0 when the file ended before."""
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


def _dress(target: int, status: os.stat_result, mode: int | None = None) -> None:
    """Owner, times and mode (unless it is given) as in `status`. Nothing that a guest made becomes somebody else's
    program."""
    now = os.fstat(target)
    if (now.st_uid, now.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode if mode is None else mode) & ~(stat.S_ISUID | stat.S_ISGID))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
