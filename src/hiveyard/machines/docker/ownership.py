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
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.core.errors import BootFailed, NoSpace, ProviderUnavailable
from hiveyard.kit.trees import walk
from hiveyard.machines.docker.container import GUEST_UID, Owner, Shared
from hiveyard.machines.docker.engine import About
from hiveyard.machines.shared import idmap

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


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
            if error.errno not in idmap.CANNOT:
                raise
        self.forget(name)
        if shared.session is not None:
            await anyio.to_thread.run_sync(give, shared.session, owner)
        return shared

    async def _need_map(self, owner: Owner) -> None:
        async with self._making:
            if self._map < 0:
                self._map = await idmap.user_namespace(owner.uid)
                weakref.finalize(self, os.close, self._map)

    def _mount(self, source: Path, place: Path) -> Path:
        place.mkdir(exist_ok=True)
        tree = idmap.mapped(source, self._map, idmap.NOSUID | idmap.NODEV)
        try:
            idmap.put(tree, place)
        finally:
            os.close(tree)
        return place


def give(tree: Path, owner: Owner) -> None:
    """Make a directory and all below it belong to the guest. Follows no symlink: guests write there."""
    # By descriptors: another machine on the same directory cannot swap a part of the path under us.
    for directories, files, at in walk(tree):
        os.fchown(at, owner.uid, owner.gid)
        for name in (*directories, *files):
            if os.stat(name, dir_fd=at, follow_symlinks=False).st_uid != owner.uid:
                os.chown(name, owner.uid, owner.gid, dir_fd=at, follow_symlinks=False)
