"""Unpack images to root file systems. Each is a directory named by the image's id and the edition of the unpacking,
and never changes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from functools import partial
from pathlib import Path

import anyio

from hiveyard.core.errors import BadInput, NoSpace, NoSuchImage, ProviderError
from hiveyard.core.machines import Image, Report, StoredItem
from hiveyard.kit import files, process
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.kit.trees import remove_tree

_EDITION = ".2"  # changes with the way of unpacking; roots of older versions of Hiveyard have no suffix
_NO_DEVICES = ("--anchored", "--exclude=./dev/*", "--exclude=dev/*")
_MOUNT_POINTS = ("dev", "home/agent", "proc", "run", "session", "sys", "tmp", "var/tmp")


class Roots:
    """The unpacked images below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, image_id: str) -> Path:
        """Return where the root of an image is, or will be."""
        return self._directory / f"{_checked(image_id)}{_EDITION}"

    def find(self, image: Image) -> Path:
        """Return the root of an image. Raises NoSuchImage."""
        path = self.path(image.id)
        if not path.is_dir():
            raise NoSuchImage(f"image {image.name} ({image.id}) is not unpacked for bubblewrap", image=image.id)
        return path

    async def unpack(self, image: Image, report: Report) -> None:
        """Unpack an image unless that was done before. Raises NoSuchImage, NoSpace, ProviderError."""
        target = self.path(image.id)
        if target.is_dir():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = files.locked(self._directory / ".lock")
        await anyio.to_thread.run_sync(lock.__enter__)
        try:
            if not target.is_dir():
                report(f"unpacking image {image.name} (once)")
                await self._unpack(image, target, report)
        finally:
            lock.__exit__(None, None, None)

    async def _unpack(self, image: Image, target: Path, report: Report) -> None:
        if not image.rootfs.is_file():
            raise NoSuchImage(
                f"the root file system of image {image.name} does not exist: {image.rootfs}", image=image.id
            )
        for left in self._directory.glob(f".{image.id}.new-*"):
            await anyio.to_thread.run_sync(remove_tree, left)
        fresh = Path(tempfile.mkdtemp(prefix=f".{image.id}.new-", dir=self._directory))
        owner = ("--numeric-owner", "--same-owner") if os.geteuid() == 0 else ("--no-same-owner",)
        try:
            argv = ["tar", "-C", str(fresh), *_NO_DEVICES, *owner, "-xpf", str(image.rootfs)]
            async with measured(report, "unpacking", partial(disk_usage, fresh)):
                done = await process.run(argv)
            if not done.ok:
                full = "No space left" in done.error_output()
                kind = NoSpace if full else ProviderError
                raise kind(f"cannot unpack {image.rootfs}: {done.error_output(300)}", hint=f"df -h {self._directory}")
            for point in _MOUNT_POINTS:
                (fresh / point).mkdir(parents=True, exist_ok=True)
            fresh.chmod(0o755)
            fresh.rename(target)
        except BaseException:
            remove_tree(fresh)
            raise

    async def release(self, image_id: str) -> None:
        """Remove the roots of an image."""
        for path in (self.path(image_id), self._directory / image_id):
            with contextlib.suppress(FileNotFoundError):
                gone = path.rename(path.with_name(f".{image_id}.new-gone"))
                await anyio.to_thread.run_sync(remove_tree, gone)

    def stored_items(self) -> list[StoredItem]:
        """List the unpacked images, and the remains of interrupted unpackings and of older editions."""
        if not self._directory.is_dir():
            return []
        found = []
        for path in sorted(path for path in self._directory.iterdir() if path.is_dir()):
            image = path.name.removeprefix(".").partition(".")[0]
            # Machines may still use a root of an older edition: the caller of `discard` checks that.
            left = path.name.startswith(".") or (path.name == image and path.with_name(image + _EDITION).is_dir())
            found.append(StoredItem(kind="left" if left else "made", name=path.name, image=image, place=path))
        return found


def _checked(image_id: str) -> str:
    if not image_id.replace("-", "").replace("_", "").isalnum():
        raise BadInput(f"{image_id[:80]!r} is not an image id")
    return image_id
