"""Store the images of this host in one directory. An image is found by its recipe, and built if it does not exist.

    images/<id>/rootfs.tar      the root filesystem, numeric owners
                image.json      name, key of the recipe, programs, size, time
                resolved.json   the version of every package inside
                build.log       the output of the build
    images/.building-*          a build in progress, or the remains of a killed one, which the next build removes
    images/lock                 allows one build at a time

A directory is complete or does not exist: it gets its name at the end of a build.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import msgspec

from hiveyard.core.errors import Ambiguous, BadInput, HiveyardError, ImageBuildFailed, NoSpace, NoSuchImage
from hiveyard.core.machines import Image, Report, quiet
from hiveyard.images import build as builder
from hiveyard.images.recipe import Recipe, digest, load
from hiveyard.kit import files, names
from hiveyard.kit.text import one_line

log = logging.getLogger(__name__)
DEFAULT = "default"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """image.json."""

    id: str
    name: str
    recipe: str
    programs: dict[str, str]
    env: dict[str, str]
    size: int
    created_at: float


class Stored(NamedTuple):
    """An image and the key of the recipe it came from."""

    image: Image
    recipe: str


class Images:
    """Recipes and the images built from them, in the cache at `cache`. `recipes` has the user's own recipes."""

    def __init__(self, cache: Path, recipes: Path | None = None) -> None:
        self.directory = cache / "images"
        self._own = recipes

    # --- recipes

    def recipes(self) -> dict[str, Path]:
        """Return the recipe files by name. A recipe of the user replaces a built-in one of that name."""
        built_in = Path(str(resources.files("hiveyard.images") / "recipes"))
        directories = [built_in, *([self._own] if self._own else [])]
        return {file.stem: file for directory in directories for file in sorted(directory.glob("*.toml"))}

    def recipe(self, ref: str = DEFAULT) -> Recipe:
        """Return the recipe of that name or file (`./my.toml`). Raises NoSuchImage; BadInput for an invalid recipe."""
        return self._load(ref, None, ())

    def _load(self, ref: str, beside: Path | None, chain: tuple[Path, ...]) -> Recipe:
        path = self._file(ref, beside)
        if path in chain:
            raise BadInput(f"{chain[0]}: from: the recipes extend each other in a circle: {path}")
        return load(path, path.stem, lambda base: self._load(base, path.parent, (*chain, path)))

    def _file(self, ref: str, beside: Path | None) -> Path:
        if ref.endswith(".toml") or "/" in ref:
            path = (beside or Path()) / os.path.expanduser(ref)  # noqa: PTH111 (it leaves an unknown user's ~ as it is)
            try:
                if path.is_file():
                    return path.resolve()
            except OSError as error:
                raise NoSuchImage(f"there is no recipe {one_line(ref)}: {error.strerror}") from error
            raise NoSuchImage(f"there is no recipe {ref}: looked for {path.absolute()}")
        try:
            return self.recipes()[ref].resolve()
        except KeyError:
            raise self._unknown(ref) from None

    # --- images

    def list(self) -> list[Image]:
        """Return the built images, newest first."""
        return [stored.image for stored in self._stored()]

    def get(self, ref: str = DEFAULT) -> Image:
        """Return a built image by its id or the start of it, or by the name or file of a recipe with its current
        content.

        Needs no network. Raises NoSuchImage, Ambiguous; BadInput for an invalid recipe."""
        if image := self._by_id(ref):
            return image
        recipe = self.recipe(ref)
        if image := self._by_recipe(recipe):
            return image
        raise NoSuchImage(f"the image {recipe.name} is not built yet", hint=f"hv image build {ref}")

    def resolve(self, ref: str = DEFAULT) -> Image | Recipe:
        """Resolve `ref` to a built image, or to the recipe that `build` would use. Raises as `get`."""
        if image := self._by_id(ref):
            return image
        recipe = self.recipe(ref)
        return self._by_recipe(recipe) or recipe

    async def ensure(self, ref: str = DEFAULT, report: Report = quiet) -> Image:
        """Return the image that `ref` names, and build it if it does not exist. Raises as `get` and `build`."""
        found = self.resolve(ref)
        return found if isinstance(found, Image) else await self.build(found, report)

    async def build(self, recipe: Recipe, report: Report = quiet, *, force: bool = False) -> Image:
        """Build an image, or return the one that was built from the same recipe before, unless `force` is set.

        This host builds one image at a time; other callers wait. If the call is cancelled, nothing is left over. Raises
        ImageBuildFailed, NoSpace, ProviderUnavailable."""
        if not force and (image := self._by_recipe(recipe)):
            return image
        async with _lock(self.directory / "lock", report):
            if not force and (image := self._by_recipe(recipe)):
                return image
            try:
                await self._sweep()
                return await self._build(recipe, report)
            except OSError as error:
                raise _foreign(error, self.directory) from error

    def remove(self, ref: str) -> Image:
        """Remove a built image from this host. The caller checks that it is not in use, and removes what providers made
        from it. Raises NoSuchImage, Ambiguous."""
        image = self._by_id(ref) or self._by_recipe(self.recipe(ref))
        if image is None:
            raise NoSuchImage(f"the image {ref} is not built", hint="hv image ls")
        doomed = self.directory / f".building-{names.new_id()}"
        image.rootfs.parent.rename(doomed)  # others no longer find it, even if the removal fails
        shutil.rmtree(doomed)
        return image

    def remains(self) -> Sequence[Path]:
        """Return the files of builds that run or were killed."""
        return sorted(self.directory.glob(".building-*"))

    async def discard(self, left: Path) -> None:
        """Remove the files of one build, with its files in other places. Only the directory `left` says where they are,
        so it stays until those are removed. Raises ImageBuildFailed."""
        await builder.sweep(left)
        await anyio.to_thread.run_sync(_remove, left)

    # --- within

    async def _build(self, recipe: Recipe, report: Report) -> Image:
        started = time.time()
        directory = self.directory / f".building-{names.new_id()}"
        directory.mkdir()
        try:
            built = await builder.build(recipe, directory, self.directory / "last-build.log", report)
            # The versions of what a recipe's steps downloaded are unknown, so the id includes the content.
            content = await anyio.to_thread.run_sync(_sha256, built.rootfs)
            record = _Record(
                id=digest([recipe.key(), built.resolved, content]),
                name=recipe.name,
                recipe=recipe.key(),
                programs=built.programs,
                env=dict(recipe.env),
                size=built.rootfs.stat().st_size,
                created_at=started,
            )
            await anyio.to_thread.run_sync(self._keep, built, record, directory)
            report(f"built {recipe.name} ({record.size >> 20} MB) in {time.time() - started:.0f}s")
            return self._image(record)
        finally:
            with anyio.CancelScope(shield=True):
                await self._clear(directory)

    def _keep(self, built: builder.Built, record: _Record, directory: Path) -> None:
        """Move the files of the image into a directory, then give it its name."""
        finished = directory / "finished"
        finished.mkdir()
        built.rootfs.rename(finished / "rootfs.tar")
        with (finished / "rootfs.tar").open("rb") as tar:
            os.fsync(tar.fileno())
        (self.directory / "last-build.log").rename(finished / "build.log")
        text = json.dumps(built.resolved, indent=1, sort_keys=True)
        files.write_atomic(finished / "resolved.json", text.encode())
        files.write_atomic(finished / "image.json", msgspec.json.format(msgspec.json.encode(record)))
        target = self.directory / record.id
        if target.exists():  # a forced build made the same image: the newer one replaces it
            target.rename(directory / "former")
        finished.rename(target)
        files.sync_dir(self.directory)

    def _stored(self) -> Sequence[Stored]:
        stored = []
        for file in self.directory.glob("*/image.json"):
            record = _read(file)
            if record and not file.parent.name.startswith(".") and (file.parent / "rootfs.tar").is_file():
                stored.append(Stored(self._image(record), record.recipe))
        return sorted(stored, key=lambda one: one.image.created_at, reverse=True)

    def _image(self, record: _Record) -> Image:
        return Image(
            id=record.id,
            name=record.name,
            rootfs=self.directory / record.id / "rootfs.tar",
            programs=record.programs,
            env=record.env,
            size=record.size,
            created_at=record.created_at,
        )

    def _by_id(self, ref: str) -> Image | None:
        if len(ref) < 4 or any(character not in "0123456789abcdef" for character in ref):
            return None
        found = [stored.image for stored in self._stored() if stored.image.id.startswith(ref)]
        if len(found) > 1:
            raise Ambiguous(f"{ref} is the start of {len(found)} images: {', '.join(image.id for image in found)}")
        return found[0] if found else None

    def _by_recipe(self, recipe: Recipe) -> Image | None:
        key = recipe.key()
        return next((stored.image for stored in self._stored() if stored.recipe == key), None)

    def _unknown(self, ref: str) -> NoSuchImage:
        known = sorted({*self.recipes(), *(image.id for image in self.list())})
        return NoSuchImage(f"there is no image {ref!r}; there are {', '.join(known)}", hint="hv image ls")

    async def _sweep(self) -> None:
        """Remove what killed builds left over. The caller holds the lock, so no build is running."""
        for left in self.remains():
            await self._clear(left)

    async def _clear(self, left: Path) -> None:
        """Discard the files of a build; the next build tries again to remove what could not be removed."""
        try:
            await self.discard(left)
        except (HiveyardError, OSError) as error:
            log.warning("%s stays: %s", left, error)


def _read(file: Path) -> _Record | None:
    """Return a record, or None if it is damaged or from another version: then the image is built again."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _foreign(error: OSError, directory: Path) -> NoSpace | ImageBuildFailed:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left under {directory}", hint=f"df -h {directory}")
    return ImageBuildFailed(f"the build failed under {directory}: {error}")


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _remove(directory: Path) -> None:
    """Remove a build's directory, but never through a mount: a build mounts the host's own /dev and /proc."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(Path(place).is_relative_to(directory.resolve()) for place in mounted):
        raise ImageBuildFailed(f"something is still mounted under {directory}", hint=f"findmnt | grep {directory}")
    shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _lock(path: Path, report: Report) -> AsyncIterator[None]:
    """Hold the build lock for the block. Waiting for it can be cancelled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        lock = files.locked(path, wait=False)
        try:
            lock.__enter__()
            break
        except BlockingIOError:
            if not waited:
                report("waiting for another image build to end")
            waited = True
            await anyio.sleep(0.5)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
