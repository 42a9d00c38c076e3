"""The session directory: root's on disk, QEMU's own user's for QEMU, and so the guest user's own in the guest.

An id-mapped mount makes that true for every file at once and in both directions, whenever either side makes one. It is
never put anywhere: QEMU holds the only descriptor, and the mount ends with it. Where there are none (Linux before 5.12,
some file systems) what is in the directory at the start is given to QEMU's user for good.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio.to_thread

from hiveyard.machines.qemu.user import User
from hiveyard.machines.shared import idmap

# ENOENT: there is no `/proc/PID/ns/user`.
_CANNOT = (*idmap.CANNOT, errno.ENOENT)


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
    namespace = await idmap.user_namespace(uid)
    try:
        return idmap.mapped(directory, namespace, idmap.NOSUID | idmap.NODEV | idmap.NOEXEC)
    finally:
        os.close(namespace)
