"""Make id-mapped mounts of directories: their files belong to root on disk, and to a guest's user in the mount.

This holds for all files in both directions, also for those that either side creates later. It needs root, Linux 5.12
and a file system that supports it. Without them these functions raise OSError with a number in `CANNOT`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

import anyio

from hiveyard.kit import process

CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)
NOSUID, NODEV, NOEXEC = 2, 4, 8

# These numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
_MOUNT_ATTR_IDMAP = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


async def user_namespace(uid: int) -> int:
    """Return a descriptor of a user namespace in which root is `uid`, for the map of a mount. The caller closes it."""
    async with process.running(["unshare", "--user", "cat"], stdin=subprocess.PIPE, grace=0.0) as child:
        directory = Path(f"/proc/{child.pid}")
        own = Path("/proc/self/ns/user").readlink()
        try:
            while (directory / "ns" / "user").readlink() == own:  # noqa: ASYNC110 (the kernel gives no event)
                await anyio.sleep(0.001)
            for kind in ("uid_map", "gid_map"):
                (directory / kind).write_text(f"0 {uid} 1")
            return os.open(directory / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise OSError(errno.ENOSYS, "user namespaces are not available", "unshare") from None


def mapped(directory: Path, namespace: int, flags: int = 0) -> int:
    """Return a detached mount of `directory` as a descriptor, with the map of `namespace` and flags such as NOSUID.

    The mount ends with its last descriptor. The caller closes it."""
    tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC, about=directory)
    try:
        attr = _MountAttr(flags | _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        words = (tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
        _call(_MOUNT_SETATTR, *words, about=directory)
    except BaseException:
        os.close(tree)
        raise
    return tree


def put(tree: int, place: Path) -> None:
    """Attach a mount of `mapped` at a path."""
    _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH, about=place)


def _call(number: int, *arguments: object, about: Path) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(about))
    return result
