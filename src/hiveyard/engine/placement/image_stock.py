"""Build images on demand, prepare them for providers, and remove those that no machine uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import BadInput, MachineNotReady, ProviderUnavailable
from hiveyard.core.machines import HOST, Image, Report, Shape
from hiveyard.core.ports import Provider
from hiveyard.engine.placement.provider_choice import choose
from hiveyard.engine.settings import EngineSettings
from hiveyard.images.images import DEFAULT, Images
from hiveyard.kit.trees import remove_tree


class ImageStock:
    """The image recipes and the images built from them."""

    def __init__(self, images: Images, providers: Mapping[str, Provider], settings: EngineSettings) -> None:
        self._images = images
        self._providers = providers
        self._settings = settings

    @property
    def directory(self) -> Path:
        """The directory of the images."""
        return self._images.directory

    def check(self, name: str) -> None:
        """Raise NoSuchImage, or BadInput for an invalid recipe."""
        if name != HOST.name:
            self._images.resolve(name)

    def image_for(self, program: str) -> str:
        """Return the image of a task that names none: that of the settings, or the program's own image if the default
        image lacks the program. Raises NoSuchImage."""
        name = self._settings.image
        if name != DEFAULT or program not in self._images.recipes():
            return name
        return name if program in self._images.resolve(name).programs else program

    def check_program(self, name: str, program: str) -> None:
        """Raise BadInput if an image lacks a program that has an image of its own. Programs that a recipe does not name
        are not known here."""
        if name == HOST.name or program not in self._images.recipes():
            return
        if program not in self._images.resolve(name).programs:
            raise BadInput(
                f"the image {name} does not contain {program}",
                hint=f'--image {program}, or your own recipe with: from = "{program}"',
            )

    async def get(self, name: str, report: Report, *, force: bool = False) -> Image:
        """Return the image of a recipe's name or file, or of an id; build it if needed. Raises as `check`, and
        ImageBuildFailed, NoSpace."""
        if name == HOST.name:
            return HOST
        if force:
            return await self._images.build(self._images.recipe(name), report, force=True)
        return await self._images.ensure(name, report)

    async def build(self, name: str, report: Report, *, force: bool, provider: str | None) -> Image:
        """Build an image and, if a provider is named, prepare it for its machines."""
        image = await self.get(name, report, force=force)
        if provider is not None:
            choice = await choose(provider, self._providers)
            report(f"preparing {image.name} for {choice.why}")
            await choice.provider.prepare(image, self.shape, report)
        return image

    @property
    def shape(self) -> Shape:
        """The default size of machines."""
        settings = self._settings
        return Shape(memory_mib=settings.memory_mib, cpus=settings.cpus, disk_gib=settings.disk_gib)

    def find(self, name: str) -> Image | None:
        """Return the image that a recipe's name or file, or an id, names now; None if it is not built. Raises as
        `check`."""
        found = None if name == HOST.name else self._images.resolve(name)
        return found if isinstance(found, Image) else None

    def remains(self) -> Sequence[Path]:
        """Return the directories of builds that run or were killed."""
        return self._images.remains()

    async def discard(self, left: Path) -> None:
        """Remove the directory of a build. Raises ImageBuildFailed, OSError."""
        await self._images.discard(left)
        await anyio.to_thread.run_sync(remove_tree, left)

    def list(self) -> list[Image]:
        return self._images.list()

    def built(self, ref: str) -> Image:
        """Return an image that is built. Raises NoSuchImage."""
        return self._images.get(ref)

    async def remove(self, ref: str) -> str:
        """Remove an image and the data that providers derived from it; return its id. Raises NoSuchImage;
        MachineNotReady if a machine uses it."""
        image = self._images.get(ref)
        users = [
            machine.name
            for provider in self._providers.values()
            if (await provider.readiness()).ok
            for machine in await provider.list()
            if machine.image == image.id
        ]
        if users:
            raise MachineNotReady(f"the image {image.id} is used by {', '.join(users)}", hint="hv ps -a; hv rm TASK")
        for provider in self._providers.values():
            if provider.capabilities.remote:
                continue  # remote providers have their own images
            with suppress(ProviderUnavailable):  # its data is removed when the provider works again
                await provider.release_image(image.id)
        self._images.remove(image.id)
        return image.id
