"""Whose files a container's are, and how directories of the daemon's become the guest's own.

A daemon that is root shows its directories by id-mapped mounts: what is root's on disk is the guest's inside, in both
directions and at once. Such a mount is needed only until the container has its own copy of it. Where there are none
(Linux before 5.12, some file systems) the session directory is given to the guest's number for good.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.core.errors import BootFailed, NoSpace, ProviderUnavailable
from hiveyard.kit import process
from hiveyard.machines.docker.container import GUEST_UID, Owner, Shared
from hiveyard.machines.docker.engine import About

# These numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 0x1000, 1, 4
_MOUNT_ATTR_IDMAP = 0x00100000
_MNT_DETACH = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def owner(about: About) -> Owner:
    """Who runs in a container of this daemon. Raises ProviderUnavailable where the answer would have to be root.

    When the daemon is root it is the image's own user; else it is the daemon's, so that both sides may write to the
    session directory.
    """
    uid, gid = (GUEST_UID, GUEST_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    if not about.rootless:
        return Owner(uid=uid, gid=gid)
    if about.podman and os.geteuid() != 0:
        return Owner(uid=uid, gid=gid, keep_id=True)
    raise ProviderUnavailable(
        f"a rootless {about.name} can share this daemon's directories only with a container's root",
        hint="use the engine of the user that the daemon runs as: Podman, or Docker's own service",
    )


class Sharing:
    """Directories as the engine has to mount them. `stage` is where the mounts are, for the moment of a boot."""

    def __init__(self, stage: Path) -> None:
        self._stage = stage
        self._map = -1
        self._making = anyio.Lock()

    @asynccontextmanager
    async def shown(self, name: str, shared: Shared, owner: Owner) -> AsyncIterator[Shared]:
        """Paths to mount into the container of machine `name`, good for as long as the block lasts.

        Directories that are absent are made. Raises NoSpace, BootFailed.
        """
        try:
            for directory in shared:
                if directory is not None:
                    directory.mkdir(parents=True, exist_ok=True)
            found = await self._show(name, shared, owner) if os.geteuid() == 0 else shared
        except OSError as error:
            self.forget(name)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"no space for {error.filename}", hint=f"df -h {error.filename}") from error
            raise BootFailed(f"cannot share {error.filename} with {name}: {error.strerror}", machine=name) from error
        try:
            yield Shared(*(directory and directory.absolute() for directory in found))
        finally:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Take away the mounts of a machine's boot, also those that a killed daemon left."""
        for word in Shared._fields:
            place = self._stage / f"{name}.{word}"
            with contextlib.suppress(FileNotFoundError):
                while _libc.umount2(os.fsencode(place), _MNT_DETACH) == 0:
                    pass
                place.rmdir()

    async def _show(self, name: str, shared: Shared, owner: Owner) -> Shared:
        self._stage.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._need_map(owner)
            places = []
            for word, directory in zip(Shared._fields, shared, strict=True):
                places.append(directory and self._mount(directory, self._stage / f"{name}.{word}"))
            return Shared(*places)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        self.forget(name)
        if shared.session is not None:
            await anyio.to_thread.run_sync(give, shared.session, owner)
        return shared

    async def _need_map(self, owner: Owner) -> None:
        async with self._making:
            if self._map < 0:
                self._map = await _user_namespace(owner)
                weakref.finalize(self, os.close, self._map)

    def _mount(self, source: Path, place: Path) -> Path:
        place.mkdir(exist_ok=True)
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC, about=source)
        try:
            attr = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, self._map)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr), about=source)
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH, about=place)
        finally:
            os.close(tree)
        return place


def give(tree: Path, owner: Owner) -> None:
    """Make a directory and all below it belong to the guest. Follows no symlink: guests write there."""
    # By descriptors: another machine on the same directory cannot swap a part of the path under us.
    for _, directories, files, at in os.fwalk(tree, follow_symlinks=False):
        os.fchown(at, owner.uid, owner.gid)
        for name in (*directories, *files):
            if os.stat(name, dir_fd=at, follow_symlinks=False).st_uid != owner.uid:
                os.chown(name, owner.uid, owner.gid, dir_fd=at, follow_symlinks=False)


async def _user_namespace(owner: Owner) -> int:
    """A user namespace in which root is the guest's number: what an id-mapped mount takes its map from."""
    async with process.running(["unshare", "--user", "cat"], stdin=subprocess.PIPE, grace=0.0) as child:
        directory = Path(f"/proc/{child.pid}")
        own = Path("/proc/self/ns/user").readlink()
        try:
            while (directory / "ns" / "user").readlink() == own:  # noqa: ASYNC110 (the kernel gives no event)
                await anyio.sleep(0.002)
            (directory / "uid_map").write_text(f"0 {owner.uid} 1")
            (directory / "gid_map").write_text(f"0 {owner.gid} 1")
            return os.open(directory / "ns" / "user", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            raise OSError(errno.ENOSYS, "there are no user namespaces here", "unshare") from None


def _call(number: int, *arguments: object, about: Path) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(about))
    return result
