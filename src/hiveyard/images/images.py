"""The images of this host: found by recipe, built when absent, kept by content below one directory.

    images/<id>/rootfs.tar      the root filesystem, numeric owners
                image.json      name, key of the recipe, programs, size, time
                resolved.json   the version of every package inside
                build.log       what the build said
    images/.building-*          a build at work, or what a killed one left (swept by the next)
    images/lock                 one build at a time

A directory is complete or absent: it is renamed into place at the end of a build.
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
    """Recipes and the images made of them. `cache` is the cache's root; `recipes` is where the user keeps own ones."""

    def __init__(self, cache: Path, recipes: Path | None = None) -> None:
        self.directory = cache / "images"
        self._own = recipes

    # --- recipes

    def recipes(self) -> dict[str, Path]:
        """Every recipe that can be asked for by name; the user's own win over those that are shipped."""
        shipped = Path(str(resources.files("hiveyard.images") / "recipes"))
        places = [shipped, *([self._own] if self._own else [])]
        return {file.stem: file for place in places for file in sorted(place.glob("*.toml"))}

    def recipe(self, ref: str = DEFAULT) -> Recipe:
        """A recipe by its name or its file (`./my.toml`). Raises NoSuchImage; BadInput when its text is wrong."""
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
        """The images that are built, newest first."""
        return [stored.image for stored in self._stored()]

    def get(self, ref: str = DEFAULT) -> Image:
        """A built image by its id (or the start of it), or by the name or file of the recipe as it reads now.

        Raises NoSuchImage, Ambiguous; BadInput when the recipe's text is wrong. Needs no network.
        """
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
        """The image that `ref` means, built when it is not there yet."""
        found = self.resolve(ref)
        return found if isinstance(found, Image) else await self.build(found, report)

    async def build(self, recipe: Recipe, report: Report = quiet, *, force: bool = False) -> Image:
        """Build an image, or return the one that was built from the same recipe before (`force` builds anyway).

        One build at a time on this host: others wait. Cancelling leaves nothing. Raises ImageBuildFailed, NoSpace,
        ProviderUnavailable.
        """
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
        """Remove a built image from this host. Whether it is in use, and what providers made of it, is the caller's
        to know. Raises NoSuchImage, Ambiguous."""
        image = self._by_id(ref) or self._by_recipe(self.recipe(ref))
        if image is None:
            raise NoSuchImage(f"the image {ref} is not built", hint="hv image ls")
        doomed = self.directory / f".building-{names.new_id()}"
        image.rootfs.parent.rename(doomed)  # gone at once for others, whatever the removal meets
        shutil.rmtree(doomed)
        return image

    def remains(self) -> Sequence[Path]:
        """Return the files of builds that run or were killed."""
        return sorted(self.directory.glob(".building-*"))

    async def discard(self, left: Path) -> None:
        """Remove one of them, as far as that can be, with what its build has elsewhere; while something of that stays,
        so does the one, which alone knows of it. Raises ImageBuildFailed."""
        await builder.sweep(left)
        await anyio.to_thread.run_sync(_remove, left)

    # --- within

    async def _build(self, recipe: Recipe, report: Report) -> Image:
        started = time.time()
        directory = self.directory / f".building-{names.new_id()}"
        directory.mkdir()
        try:
            built = await builder.build(recipe, directory, self.directory / "last-build.log", report)
            # What steps of a recipe fetched has no version that we know of: what counts is what came out.
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
        """Move what is worth keeping into a directory of its own, then give that its name."""
        whole = directory / "whole"
        whole.mkdir()
        built.rootfs.rename(whole / "rootfs.tar")
        with (whole / "rootfs.tar").open("rb") as tar:
            os.fsync(tar.fileno())
        (self.directory / "last-build.log").rename(whole / "build.log")
        text = json.dumps(built.resolved, indent=1, sort_keys=True)
        files.write_atomic(whole / "resolved.json", text.encode())
        files.write_atomic(whole / "image.json", msgspec.json.format(msgspec.json.encode(record)))
        place = self.directory / record.id
        if place.exists():  # a forced build that made the same: the newer takes its place
            place.rename(directory / "former")
        whole.rename(place)
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
        """Remove what killed builds left; the lock says that none is at work."""
        for left in self.remains():
            await self._clear(left)

    async def _clear(self, left: Path) -> None:
        """Discard it; what cannot go now is for the next build, and hinders none."""
        try:
            await self.discard(left)
        except (HiveyardError, OSError) as error:
            log.warning("%s stays: %s", left, error)


def _read(file: Path) -> _Record | None:
    """None for a record that is damaged or of another version: the image is then built anew."""
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
    """Remove a build's directory. Never through a mount: what a build mounted is the host's own /dev and /proc."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if any(Path(place).is_relative_to(directory.resolve()) for place in mounted):
        raise ImageBuildFailed(f"something is still mounted under {directory}", hint=f"findmnt | grep {directory}")
    shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def _lock(path: Path, report: Report) -> AsyncIterator[None]:
    """The host's one place at the builder; waiting for it can be cancelled."""
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
