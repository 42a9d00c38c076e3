"""Share directories of the daemon with a container in such a way that the guest owns their files.

A daemon that is root uses id-mapped mounts: a file that belongs to root on disk belongs to the guest inside, in both
directions and at once. Such a mount is needed only until the container has its own copy of it. Where they are not
supported (Linux before 5.12, some file systems), the session directory is given to the guest's user id for good.
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
from hiveyard.machines.docker import idmap
from hiveyard.machines.docker.container import GUEST_UID, Owner, Shared
from hiveyard.machines.docker.engine import About

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def owner(about: About) -> Owner:
    """Return the user of this daemon's containers. Raises ProviderUnavailable if that would have to be root.

    It is the image's user if the daemon is root. Else it is the daemon's user, so that both sides can write to the
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
    """Directories prepared for the engine to mount. `stage` holds id-mapped mounts during a boot."""

    def __init__(self, stage: Path) -> None:
        self._stage = stage
        self._map = -1
        self._making = anyio.Lock()

    @asynccontextmanager
    async def exposed(self, name: str, shared: Shared, owner: Owner) -> AsyncIterator[Shared]:
        """Return the paths to mount into the container of machine `name`. They are valid during the block.

        Missing directories are created. Raises NoSpace, BootFailed.
        """
        try:
            for directory in shared:
                if directory is not None:
                    directory.mkdir(parents=True, exist_ok=True)
            found = await self._expose(name, shared, owner) if os.geteuid() == 0 else shared
        except OSError as error:
            self.unmount(name)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"no space for {error.filename}", hint=f"df -h {error.filename}") from error
            raise BootFailed(f"cannot share {error.filename} with {name}: {error.strerror}", machine=name) from error
        try:
            yield Shared(*(directory and directory.absolute() for directory in found))
        finally:
            self.unmount(name)

    def unmount(self, name: str) -> None:
        """Unmount what was mounted for a machine's boot, also by a daemon that was killed."""
        for word in Shared._fields:
            place = self._stage / f"{name}.{word}"
            with contextlib.suppress(FileNotFoundError):
                while _libc.umount2(os.fsencode(place), _MNT_DETACH) == 0:
                    pass
                place.rmdir()

    async def _expose(self, name: str, shared: Shared, owner: Owner) -> Shared:
        self._stage.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._ensure_map(owner)
            places = []
            for word, directory in zip(Shared._fields, shared, strict=True):
                places.append(directory and self._mount(directory, self._stage / f"{name}.{word}"))
            return Shared(*places)
        except OSError as error:
            if error.errno not in idmap.CANNOT:
                raise
        self.unmount(name)
        if shared.session is not None:
            await anyio.to_thread.run_sync(give_ownership, shared.session, owner)
        return shared

    async def _ensure_map(self, owner: Owner) -> None:
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


def give_ownership(tree: Path, owner: Owner) -> None:
    """Change the owner of a directory and everything below it to the guest. Follows no symlink: guests write there."""
    # By descriptors: another machine with the same directory could replace a part of the path.
    for directories, files, at in walk(tree):
        os.fchown(at, owner.uid, owner.gid)
        for name in (*directories, *files):
            if os.stat(name, dir_fd=at, follow_symlinks=False).st_uid != owner.uid:
                os.chown(name, owner.uid, owner.gid, dir_fd=at, follow_symlinks=False)
