"""The answers to a guest's questions, in the FUSE protocol of Linux (version 7.31).

All files are the guest user's own. It can make no device and no setuid file. What makes no sense is EINVAL.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from hiveyard.machines.fuse_server.tree import ROOT, Opened, Tree, beneath, fail, libc

GUEST_UID = 1000
VALID = 1  # seconds that the guest may believe what it was told of a file: a change by the host is seen after that
LONGEST = (128 << 10) + 8192
# Bytes of the host's disk that no guest gets all at once: the watchdog of turns needs the time
# that it takes to write so much. Its own reserve is as large, unless the settings say otherwise.
RESERVE = 1 << 30

HEAD = struct.Struct("<IIQQIIII")
ANSWER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
ENTRY = struct.Struct("<QQQQII")
ABSENT = ENTRY.pack(0, 0, VALID, 0, 0, 0) + bytes(ATTR.size)
ATTR_HEAD = struct.Struct("<QII")
OPENED = struct.Struct("<QII")
DIRENT = struct.Struct("<QQII")
RW = struct.Struct("<QQIIQII")
SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
INIT_IN = struct.Struct("<IIII")
INIT_OUT = struct.Struct("<IIIIHHIIHHI7I")
STATFS = struct.Struct("<5QIII7I")

FEATURES = 1 | 1 << 3 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 18  # async, o_trunc, big writes, inval, plus
KEEP_CACHE = 1 << 1  # what was read before is still good, unless size or time of change say otherwise
PUNCH_HOLE = 0x02 | 0x01  # linux/falloc.h; a hole never changes the size
KEPT_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_SYNC | os.O_DSYNC


def attributes(status: os.stat_result) -> bytes:
    times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
    return ATTR.pack(
        *(status.st_ino, status.st_size, status.st_blocks),
        *(time // 10**9 & (1 << 64) - 1 for time in times),
        *(time % 10**9 for time in times),
        *(status.st_mode, status.st_nlink, GUEST_UID, GUEST_UID, 0, 4096, 0),
    )


def checked(name: bytes) -> bytes:
    if not name or name in (b".", b"..") or b"/" in name or len(name) > 255:
        raise fail(errno.EINVAL)
    return name


def names(data: bytes, count: int) -> list[bytes]:
    parts = data.split(b"\0")
    if len(parts) <= count:
        raise fail(errno.EINVAL)
    return parts[:count]


class Files:
    """Answers the guest, one message after another. A method returns the answer's body; None: there is no answer."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._verbs: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self.lookup,
            2: self.forget,
            3: self.getattr,
            4: self.setattr,
            5: self.readlink,
            6: self.symlink,
            8: self.mknod,
            9: self.mkdir,
            10: self.unlink,
            11: self.rmdir,
            12: self.rename,
            13: self.link,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: self.fsync,
            26: self.init,
            27: self.opendir,
            28: self.readdir,
            29: self.release,
            30: self.fsync,
            35: self.create,
            36: self.interrupt,
            38: lambda _, __: b"",
            42: self.batch_forget,
            43: self.fallocate,
            44: self.readdirplus,
            45: self.rename2,
            46: self.lseek,
        }

    def answer(self, message: bytes | memoryview) -> bytes:
        """The answer to one message, or nothing. It keeps nothing of the message."""
        _, verb, unique, node, *_ = HEAD.unpack_from(message)
        try:
            call = self._verbs.get(verb)
            if call is None:
                raise fail(errno.ENOSYS)
            body, code = call(node, bytes(message[HEAD.size :])), 0
        except OSError as error:
            body, code = b"", -(error.errno or errno.EIO)
        except MemoryError:
            body, code = b"", -errno.ENOMEM
        except (struct.error, ValueError, OverflowError, RecursionError):
            body, code = b"", -errno.EINVAL
        if body is None:
            return b""
        return ANSWER.pack(ANSWER.size + len(body), code, unique) + body

    # Names.

    def _entry(self, parent: int, fd: int, name: bytes) -> bytes:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        number = self.tree.meet(parent, name, status)
        return ENTRY.pack(number, 0, VALID, VALID, 0, 0) + attributes(status)

    def lookup(self, node: int, data: bytes) -> bytes:
        name = checked(*names(data, 1))
        with self.tree.directory(node) as fd:
            try:
                return self._entry(node, fd, name)
            except FileNotFoundError:
                return ABSENT

    def forget(self, node: int, data: bytes) -> None:
        self.tree.forget(node, *struct.unpack_from("<Q", data))

    def batch_forget(self, node: int, data: bytes) -> None:
        (count,) = struct.unpack_from("<I", data)
        for number, times in struct.iter_unpack("<QQ", data[8 : 8 + 16 * count]):
            self.tree.forget(number, times)

    def readlink(self, node: int, data: bytes) -> bytes:
        with self.tree.place(node) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def symlink(self, node: int, data: bytes) -> bytes:
        name, target = names(data, 2)
        with self.tree.making(node) as fd:
            os.symlink(target, checked(name), dir_fd=fd)
            return self._entry(node, fd, name)

    def mknod(self, node: int, data: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", data)
        name = checked(*names(data[16:], 1))
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise fail(errno.EPERM)
        with self.tree.making(node) as fd:
            os.mknod(name, stat.S_IFMT(mode) | mode & 0o1777, dir_fd=fd)
            return self._entry(node, fd, name)

    def mkdir(self, node: int, data: bytes) -> bytes:
        (mode,) = struct.unpack_from("<I", data)
        name = checked(*names(data[8:], 1))
        with self.tree.making(node) as fd:
            os.mkdir(name, mode & 0o1777, dir_fd=fd)
            return self._entry(node, fd, name)

    def unlink(self, node: int, data: bytes) -> bytes:
        name = checked(*names(data, 1))
        with self.tree.directory(node) as fd:
            os.unlink(name, dir_fd=fd)
        self.tree.forsake(node, name)
        return b""

    def rmdir(self, node: int, data: bytes) -> bytes:
        name = checked(*names(data, 1))
        with self.tree.directory(node) as fd:
            os.rmdir(name, dir_fd=fd)
        self.tree.forsake(node, name)
        return b""

    def rename(self, node: int, data: bytes) -> bytes:
        (target,) = struct.unpack_from("<Q", data)
        return self._rename(node, target, data[8:], 0)

    def rename2(self, node: int, data: bytes) -> bytes:
        target, flags = struct.unpack_from("<QI", data)
        return self._rename(node, target, data[16:], flags)

    def _rename(self, node: int, target: int, data: bytes, flags: int) -> bytes:
        old, new = (checked(name) for name in names(data, 2))
        with self.tree.directory(node) as source, self.tree.directory(target) as goal:
            if flags & ~3:
                raise fail(errno.EINVAL)
            if libc.renameat2(source, old, goal, new, flags) < 0:
                raise fail(ctypes.get_errno())
        self.tree.move(node, old, target, new, exchange=bool(flags & 2))
        return b""

    def link(self, node: int, data: bytes) -> bytes:
        (number,) = struct.unpack_from("<Q", data)
        new = checked(*names(data[8:], 1))
        with self.tree.place(number) as (source, old), self.tree.making(node) as goal:
            os.link(old, new, src_dir_fd=source, dst_dir_fd=goal, follow_symlinks=False)
            self.tree.link(number, os.stat(new, dir_fd=goal, follow_symlinks=False))
            return self._entry(node, goal, new)

    # What files are like.

    def getattr(self, node: int, data: bytes) -> bytes:
        flags, _, handle = struct.unpack_from("<IIQ", data)
        status = os.fstat(self.tree.held(handle).fd) if flags & 1 else self.tree.status(node)
        return ATTR_HEAD.pack(VALID, 0, 0) + attributes(status)

    def setattr(self, node: int, data: bytes) -> bytes:
        valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = SETATTR.unpack_from(
            data
        )
        if (valid & 2 and uid != GUEST_UID) or (valid & 4 and gid != GUEST_UID):
            raise fail(errno.EPERM)
        if valid & 8:
            self._truncate(node, self.tree.held(handle).fd if valid & 64 else None, size)
        if valid & 1:
            self._through(node, lambda path: Path(path).chmod(mode & 0o1777))
        if valid & 0x30:
            now = self.tree.status(node)
            self._touch(
                node,
                (None if valid & 128 else atime * 10**9 + atime_ns) if valid & 16 else now.st_atime_ns,
                (None if valid & 256 else mtime * 10**9 + mtime_ns) if valid & 32 else now.st_mtime_ns,
            )
        return ATTR_HEAD.pack(VALID, 0, 0) + attributes(self.tree.status(node))

    def _truncate(self, node: int, fd: int | None, size: int) -> None:
        if fd is not None:
            os.ftruncate(fd, size)
            return
        fd = self._regular(node, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _touch(self, node: int, atime: int | None, mtime: int | None) -> None:
        if atime is None or mtime is None:
            now = time.time_ns()
            atime, mtime = now if atime is None else atime, now if mtime is None else mtime
        if node == ROOT:
            self._through(node, lambda path: os.utime(path, ns=(atime, mtime)))
            return
        with self.tree.place(node) as (fd, name):
            os.utime(name, ns=(atime, mtime), dir_fd=fd, follow_symlinks=False)

    def _through(self, node: int, work: Callable[[str], None]) -> None:
        """Do something to a file by a descriptor of it, which cannot become another file or a link."""
        fd = beneath(self.tree.root, self.tree.path(node), os.O_PATH)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise fail(errno.EOPNOTSUPP)
            work(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def statfs(self, node: int, data: bytes) -> bytes:
        it = os.statvfs(self.tree.root)
        head = (it.f_blocks, it.f_bfree, it.f_bavail, it.f_files, it.f_ffree, it.f_bsize, it.f_namemax, it.f_frsize)
        return STATFS.pack(*head, *(0,) * 7)

    # What is in them.

    def _regular(self, node: int, flags: int) -> int:
        fd = self.tree.open(node, flags)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise fail(errno.ENXIO)
        return fd

    def open(self, node: int, data: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", data)
        flags &= KEPT_FLAGS
        self.tree.check_handles()
        handle = self.tree.hold(Opened(self._regular(node, flags), node, flags))
        return OPENED.pack(handle, KEEP_CACHE, 0)

    def create(self, node: int, data: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", data)
        name = checked(*names(data[16:], 1))
        kept = flags & KEPT_FLAGS
        self.tree.check_handles()
        with self.tree.making(node) as directory:
            extra = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | flags & os.O_EXCL
            fd = os.open(name, kept | extra, mode & 0o1777, dir_fd=directory)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise fail(errno.ENXIO)
                entry = self._entry(node, directory, name)
            except BaseException:
                os.close(fd)
                raise
        number = ENTRY.unpack_from(entry)[0]
        return entry + OPENED.pack(self.tree.hold(Opened(fd, number, kept)), KEEP_CACHE, 0)

    def read(self, node: int, data: bytes) -> bytes:
        handle, offset, size, *_ = RW.unpack_from(data)
        return os.pread(self.tree.held(handle).fd, min(size, LONGEST), offset)

    def write(self, node: int, data: bytes) -> bytes:
        handle, offset, size, *_ = RW.unpack_from(data)
        piece = data[RW.size : RW.size + size]
        return struct.pack("<II", os.pwrite(self.tree.held(handle).fd, piece, offset), 0)

    def release(self, node: int, data: bytes) -> bytes:
        self.tree.release(*struct.unpack_from("<Q", data))
        return b""

    def fsync(self, node: int, data: bytes) -> bytes:
        os.fsync(self.tree.held(*struct.unpack_from("<Q", data)).fd)
        return b""

    def fallocate(self, node: int, data: bytes) -> bytes:
        handle, offset, length, mode = struct.unpack_from("<QQQI", data)
        fd = self.tree.held(handle).fd
        if mode not in (0, PUNCH_HOLE):
            raise fail(errno.EOPNOTSUPP)
        if mode == 0:
            free = os.fstatvfs(fd)
            if free.f_bavail * free.f_frsize - length < RESERVE:
                raise fail(errno.ENOSPC)
            os.posix_fallocate(fd, offset, length)
        elif libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) < 0:
            raise fail(ctypes.get_errno())
        return b""

    def lseek(self, node: int, data: bytes) -> bytes:
        handle, offset, whence = struct.unpack_from("<QQI", data)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise fail(errno.EINVAL)
        return struct.pack("<Q", os.lseek(self.tree.held(handle).fd, offset, whence))

    # Directories.

    def opendir(self, node: int, data: bytes) -> bytes:
        flags = os.O_RDONLY | os.O_DIRECTORY
        self.tree.check_handles()
        fd = beneath(self.tree.root, self.tree.path(node), flags)
        return OPENED.pack(self.tree.hold(Opened(fd, node, flags, [])), 0, 0)

    def readdir(self, node: int, data: bytes) -> bytes:
        return self._list(node, data, plus=False)

    def readdirplus(self, node: int, data: bytes) -> bytes:
        return self._list(node, data, plus=True)

    def _list(self, node: int, data: bytes, *, plus: bool) -> bytes:
        handle, offset, size, *_ = RW.unpack_from(data)
        opened = self.tree.held(handle)
        if opened.names is None:
            raise fail(errno.ENOTDIR)
        found = self.tree.read_names(opened) if offset == 0 or not opened.names else opened.names
        out = bytearray()
        for number in range(offset, len(found)):
            name = found[number]
            length = -(-(DIRENT.size + len(name)) // 8) * 8 + (ENTRY.size + ATTR.size if plus else 0)
            if len(out) + length > min(size, LONGEST):
                break
            try:
                out += self._dirent(opened, name, number + 1, plus=plus)
            except FileNotFoundError:
                continue  # it was removed since
        return bytes(out)

    def _dirent(self, opened: Opened, name: bytes, after: int, *, plus: bool) -> bytes:
        dots = name in (b".", b"..")
        status = os.fstat(opened.fd) if dots else os.stat(name, dir_fd=opened.fd, follow_symlinks=False)
        dirent = DIRENT.pack(status.st_ino, after, len(name), stat.S_IFMT(status.st_mode) >> 12) + name
        dirent += b"\0" * (-len(dirent) % 8)
        if not plus:
            return dirent
        # 0: it is told of the name, and has to ask for the file when it needs that.
        number = 0 if dots or self.tree.full else self.tree.meet(opened.node, name, status)
        return ENTRY.pack(number, 0, VALID, VALID, 0, 0) + attributes(status) + dirent

    # The rest.

    def init(self, node: int, data: bytes) -> bytes:
        _, _, readahead, flags = INIT_IN.unpack_from(data)
        return INIT_OUT.pack(7, 31, readahead, flags & FEATURES, 16, 12, 128 << 10, 1, 0, 0, *(0,) * 8)

    def interrupt(self, node: int, data: bytes) -> None:
        """Nothing here takes long."""
