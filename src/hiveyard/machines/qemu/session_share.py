"""Share the session directory with QEMU: its files are root's on disk, and the guest user's in the guest.

An id-mapped mount translates the owner of every file, in both directions, whichever side creates it. The mount has no
path: QEMU holds the only descriptor, and the mount ends with QEMU. Where id-mapped mounts do not exist (Linux before
5.12, some file systems), the files that are in the directory at the start are given to QEMU's user permanently.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio.to_thread

from hiveyard.machines.qemu.user import User
from hiveyard.machines.shared import idmap

# ENOENT: `/proc/PID/ns/user` does not exist.
_CANNOT = (*idmap.CANNOT, errno.ENOENT)


async def shared(directory: Path, user: User) -> int:
    """Return a descriptor of `directory` for QEMU to inherit; the caller closes it. Raises OSError if the directory
    does not exist."""
    if user.uid is not None:
        try:
            return await _mapped(directory, user.uid)
        except OSError as error:
            if error.errno not in _CANNOT or not directory.is_dir():
                raise
        # This takes a while for a large repository; other machines must not wait for it.
        await anyio.to_thread.run_sync(user.give_tree, directory)
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


async def _mapped(directory: Path, uid: int) -> int:
    namespace = await idmap.user_namespace(uid)
    try:
        return idmap.mapped(directory, namespace, idmap.NOSUID | idmap.NODEV | idmap.NOEXEC)
    finally:
        os.close(namespace)
