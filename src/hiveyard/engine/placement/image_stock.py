"""The images at hand: built when wanted, prepared for the providers that use them, removed when nothing does."""

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
    """Recipes, and what was made from them."""

    def __init__(self, images: Images, providers: Mapping[str, Provider], settings: EngineSettings) -> None:
        self._images = images
        self._providers = providers
        self._settings = settings

    @property
    def directory(self) -> Path:
        """Where images are kept."""
        return self._images.directory

    def check(self, name: str) -> None:
        """Raises NoSuchImage, or BadInput for a recipe that is wrong."""
        if name != HOST.name:
            self._images.resolve(name)

    def bringing(self, program: str) -> str:
        """The image of a task that names none: the one that adds a program to the default image where that lacks it,
        else the one of the settings. Raises NoSuchImage."""
        name = self._settings.image
        if name != DEFAULT or program not in self._images.recipes():
            return name
        return name if program in self._images.resolve(name).programs else program

    def check_program(self, name: str, program: str) -> None:
        """Raises BadInput when an image lacks a program for which there is an image of its own. What others bring
        without naming it in their recipe is not known here."""
        if name == HOST.name or program not in self._images.recipes():
            return
        if program not in self._images.resolve(name).programs:
            raise BadInput(
                f"the image {name} does not bring {program}",
                hint=f'--image {program}, or a recipe of your own with: from = "{program}"',
            )

    async def get(self, name: str, report: Report, *, force: bool = False) -> Image:
        """The image of a recipe's name or file, or of an id; built when it is not there. Raises as `check` and
        ImageBuildFailed, NoSpace."""
        if name == HOST.name:
            return HOST
        if force:
            return await self._images.build(self._images.recipe(name), report, force=True)
        return await self._images.ensure(name, report)

    async def build(self, name: str, report: Report, *, force: bool, provider: str | None) -> Image:
        """Build an image and, when a provider is named, all that its machines need."""
        image = await self.get(name, report, force=force)
        if provider is not None:
            choice = await choose(provider, self._providers)
            report(f"preparing {image.name} for {choice.why}")
            await choice.provider.prepare(image, self.shape, report)
        return image

    @property
    def shape(self) -> Shape:
        """The size of machines that a task does not set."""
        settings = self._settings
        return Shape(memory_mib=settings.memory_mib, cpus=settings.cpus, disk_gib=settings.disk_gib)

    def find(self, name: str) -> Image | None:
        """The image that a recipe's name or file, or an id, stands for now; None when that is not built. Raises as
        `check`."""
        found = None if name == HOST.name else self._images.resolve(name)
        return found if isinstance(found, Image) else None

    def remains(self) -> Sequence[Path]:
        """What builds that are at work, or were killed, have on disk."""
        return self._images.remains()

    async def discard(self, left: Path) -> None:
        """Remove one of them whole. Raises ImageBuildFailed, OSError."""
        await self._images.discard(left)
        await anyio.to_thread.run_sync(remove_tree, left)

    def list(self) -> list[Image]:
        return self._images.list()

    def built(self, ref: str) -> Image:
        """One that is there. Raises NoSuchImage."""
        return self._images.get(ref)

    async def remove(self, ref: str) -> str:
        """Remove an image and what providers made from it; returns its id. Raises NoSuchImage, MachineNotReady when
        a machine uses it."""
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
                continue  # it has images of its own
            with suppress(ProviderUnavailable):  # what it has of the image is found when it works again
                await provider.release_image(image.id)
        self._images.remove(image.id)
        return image.id
