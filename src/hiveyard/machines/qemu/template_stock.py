"""The disks and templates that machines start from: one disk per image, one frozen template per size of machine.

Missing and damaged ones are made by one process at a time, which holds the image's lock meanwhile.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import BootFailed, NoSuchImage, ProviderUnavailable
from hiveyard.core.machines import Image, MachineSpec, Readiness, Report, Shape, quiet
from hiveyard.kit.lock import file_lock
from hiveyard.machines.qemu.accelerator import Accelerator, Accelerators, Choice
from hiveyard.machines.qemu.cleanup import sweep
from hiveyard.machines.qemu.disk import Disk, Disks
from hiveyard.machines.qemu.host import Qemu, check_memory, check_space, disk_full_as_no_space, processor, version
from hiveyard.machines.qemu.settings import QemuSettings
from hiveyard.machines.qemu.snapshot import Snapshot
from hiveyard.machines.qemu.template import CorruptTemplate, Key, Origin, Template, Templates
from hiveyard.machines.qemu.template_build import build_template
from hiveyard.machines.qemu.user import User

_log = logging.getLogger(__name__)


class TemplateStock:
    """The disks and templates of one cache, for this host's QEMU and accelerator."""

    def __init__(self, cache: Path, settings: QemuSettings, builder: User, candidates: Sequence[Accelerator]) -> None:
        self._cache = cache
        self._settings = settings
        self._builder = builder
        self._candidates = candidates
        self._disks = Disks(cache / "disks", builder.group)
        self._templates = Templates(cache / "templates")
        self._version = ""

    # The host's QEMU.

    async def readiness(self) -> Readiness:
        try:
            number = await self._found_version()
            kernels = self._disks.kernels()
            accelerators = self._accelerators()
            choice = await accelerators.choose(kernels[-1], number) if kernels else accelerators.known(number)
        except (ProviderUnavailable, BootFailed) as error:
            return Readiness(ok=False, detail=error.message, fix=error.hint)
        reason = choice.reason if choice else "the accelerator is chosen when the first image is prepared"
        return Readiness(ok=True, detail=f"QEMU {number}; {reason}")

    async def qemu_of(self, snapshot: Snapshot) -> Qemu:
        """Return this host's QEMU for a snapshot. Raises ProviderUnavailable if it cannot load the snapshot."""
        number = await self._found_version()
        kernels = self._disks.kernels()
        choices = await self._choices(kernels[-1] if kernels else None)
        return snapshot.qemu(self._settings.program, number, choices)

    async def _choices(self, kernel: Path | None) -> list[Choice]:
        """Return the accelerators to try, the best first. A boot does not wait for a new trial of one that failed."""
        number = await self._found_version()
        accelerators = self._accelerators()
        best = accelerators.known(number)
        if best is None and kernel is not None:
            best = await accelerators.choose(kernel, number)
        return [best, *accelerators.without_hardware(best)] if best else []

    def _qemu(self, choice: Choice) -> Qemu:
        return Qemu(self._settings.program, self._version, choice)

    async def _found_version(self) -> str:
        self._version = self._version or await version(self._settings.program)
        return self._version

    def _accelerators(self) -> Accelerators:
        return Accelerators(
            self._candidates,
            requested=self._settings.accelerator,
            program=self._settings.program,
            timeout=self._settings.trial_timeout,
            user=self._builder,
            known=self._cache / "accelerator.json",
        )

    # Images.

    async def prepare(self, image: Image, shape: Shape, report: Report) -> None:
        await self._found_version()
        with disk_full_as_no_space():
            self._cache.mkdir(parents=True, exist_ok=True)
            async with self._image_lock(image.id):
                disk = await self._disks.ensure(image, shape.disk_gib, report)
                before = self._accelerators().known(self._version)
                qemu = self._qemu(await self._accelerators().choose(disk.kernel, self._version))
                if before is None or before.engine != qemu.choice.engine:
                    report(f"accelerator: {qemu.choice.reason}")
                await anyio.to_thread.run_sync(
                    sweep, [*self._templates.obsolete(qemu.version), *self._disks.obsolete()]
                )
                if self._settings.templates:
                    await self._ensure_template(image.id, shape, self.session_size, disk, qemu, report)

    async def release(self, image_id: str) -> None:
        async with self._image_lock(image_id):
            await anyio.to_thread.run_sync(self._templates.remove_image, image_id)
            await anyio.to_thread.run_sync(self._disks.remove, image_id)

    # Origins of machines.

    @property
    def session_size(self) -> int:
        """The size of a new session's disk in bytes."""
        return self._settings.session_gib << 30

    async def origin(self, spec: MachineSpec, session_size: int) -> tuple[Qemu, Origin]:
        """Return the origin of a new machine whose session's disk has `session_size` bytes, and the QEMU for it. Raises
        NoSuchImage if the image is not prepared for the machine's size."""
        disk = self._disk(spec)
        choices = await self._choices(disk.kernel)
        qemu = self._qemu(choices[0])
        if not self._settings.templates:
            return qemu, Origin((disk.layer,), disk.host_key, kernel=disk.root)
        # A template that was made under a lesser choice can be used until the image is prepared again.
        for other in map(self._qemu, choices):
            if self._templates.find(self._key(spec.image.id, spec.shape, session_size, disk, other)):
                qemu = other
                break
        return qemu, (await self._template(spec, session_size, disk, qemu)).origin(disk.layer)

    async def replacement(self, spec: MachineSpec, session_size: int, qemu: Qemu, broken: Origin) -> Origin:
        """Return another origin for a machine that could not start from the template `broken`. Raises
        NoSuchImage."""
        disk = self._disk(spec)
        async with self._image_lock(spec.image.id):
            key = self._key(spec.image.id, spec.shape, session_size, disk, qemu)
            now = self._templates.find(key)
            if now is None or now.root != broken.frozen:
                return (await self._ensure(spec, session_size, disk, qemu)).origin(disk.layer)
            # The old one is retired only after this succeeds: on a host where no state loads, it may be intact.
            fresh = await self._new_template(key, disk, qemu, quiet)
            await anyio.to_thread.run_sync(self._templates.retire, now)
            return fresh.origin(disk.layer)

    def _disk(self, spec: MachineSpec) -> Disk:
        disk = self._disks.find(spec.image.id, spec.shape.disk_gib)
        if disk is None:
            raise _not_prepared(spec)
        return disk

    async def _template(self, spec: MachineSpec, session_size: int, disk: Disk, qemu: Qemu) -> Template:
        key = self._key(spec.image.id, spec.shape, session_size, disk, qemu)
        template = self._templates.find(key)
        if template is None:
            # Another process may be making it.
            async with self._image_lock(spec.image.id):
                template = self._templates.find(key)
                if template is None and session_size != self.session_size:
                    # A session from before the setting changed: `prepare` knows only the present size.
                    template = await self._ensure(spec, session_size, disk, qemu)
        if template is None:
            raise _not_prepared(spec)
        try:
            template.check()
        except CorruptTemplate:
            async with self._image_lock(spec.image.id):
                return await self._ensure(spec, session_size, disk, qemu)
        return template

    async def _ensure(self, spec: MachineSpec, session_size: int, disk: Disk, qemu: Qemu) -> Template:
        return await self._ensure_template(spec.image.id, spec.shape, session_size, disk, qemu, quiet)

    async def _ensure_template(
        self, image: str, shape: Shape, session_size: int, disk: Disk, qemu: Qemu, report: Report
    ) -> Template:
        """Return an intact template, and make it if there is none. The caller holds the image's lock."""
        key = self._key(image, shape, session_size, disk, qemu)
        if template := self._templates.find(key):
            try:
                template.check()
                return template
            except CorruptTemplate as error:
                report(f"{error.message}; making it again")
                _log.warning("%s; making it again", error.message)
                await anyio.to_thread.run_sync(self._templates.retire, template)
        return await self._new_template(key, disk, qemu, report)

    async def _new_template(self, key: Key, disk: Disk, qemu: Qemu, report: Report) -> Template:
        shape = key.shape
        check_memory(shape)
        check_space(self._cache, shape.memory_mib + 512)
        fresh = self._templates.new_directory(key)
        try:
            label = f"hiveyard-template:{key.digest()}"
            await build_template(
                *(fresh, label, qemu, self._builder, shape, disk),
                session_size=key.session_size,
                timeout=self._settings.boot_timeout,
                report=report,
            )
            return self._templates.publish(
                key, fresh, host_key=disk.host_key, group=self._builder.group, sealed=qemu.seals
            )
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _key(self, image: str, shape: Shape, session_size: int, disk: Disk, qemu: Qemu) -> Key:
        return Key(
            image=image,
            disk=disk.host_key,
            shape=replace(shape, cpus=shape.whole_cpus, pids=Shape().pids),  # set when a machine is forked
            session_size=session_size,
            engine=qemu.choice.engine,
            version=qemu.version,
            processor=processor().digest() if qemu.kvm else "",
        )

    def _image_lock(self, image_id: str) -> AbstractAsyncContextManager[None]:
        return file_lock(self._cache / "locks" / image_id)


def _not_prepared(spec: MachineSpec) -> NoSuchImage:
    return NoSuchImage(
        f"image {spec.image.name} is not prepared for machines of {spec.shape.memory_mib} MiB,"
        f" {spec.shape.cpus} cpus and {spec.shape.disk_gib} GiB"
    )
