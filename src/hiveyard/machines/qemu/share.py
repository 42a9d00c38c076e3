"""The session directory: root's on disk, QEMU's own user's for QEMU, and so the guest user's own in the guest.

An id-mapped mount makes that true for every file at once and in both directions, whenever either side makes one. It is
never put anywhere: QEMU holds the only descriptor, and the mount ends with it. Where there are none (Linux before 5.12,
some file systems) what is in the directory at the start is given to QEMU's user for good.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.kit import process
from hiveyard.machines.qemu.user import User

# These numbers are the same on every architecture.
_OPEN_TREE, _MOUNT_SETATTR = 428, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE = -100, 0x1000, 1
_MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_NOEXEC, _MOUNT_ATTR_IDMAP = 2, 4, 8, 0x00100000
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT)

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


async def shared(directory: Path, user: User) -> int:
    """A descriptor of `directory` for QEMU to inherit; the caller closes it. Raises OSError when it is not there."""
    if user.uid is not None:
        try:
            return await _mapped(directory, user.uid)
        except OSError as error:
            if error.errno not in _CANNOT or not directory.is_dir():
                raise
        # A large repository takes a while to give away; other machines must not wait for that.
        await anyio.to_thread.run_sync(user.owns_tree, directory)
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


async def _mapped(directory: Path, uid: int) -> int:
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        async with _map_of(uid) as namespace:
            flags = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
            attr = _MountAttr(flags, 0, 0, namespace)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
    except BaseException:
        os.close(tree)
        raise
    return tree


@asynccontextmanager
async def _map_of(uid: int) -> AsyncIterator[int]:
    """A user namespace in which root is `uid`: what an id-mapped mount takes its map from."""
    async with process.running(["unshare", "--user", "cat"], stdin=subprocess.PIPE, grace=0.0) as child:
        namespace = Path(f"/proc/{child.pid}/ns/user")
        own = Path("/proc/self/ns/user").readlink()
        while namespace.readlink() == own:  # noqa: ASYNC110 (the kernel gives no event)
            await anyio.sleep(0.001)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child.pid}/{kind}").write_text(f"0 {uid} 1")
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
