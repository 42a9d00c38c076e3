"""Create instances and snapshots. Each is created once, and found again if the answer was lost."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from hiveyard.core.errors import (
    BootFailed,
    BootTimeout,
    NoSuchImage,
    ProviderBadAnswer,
    ProviderError,
    ProviderNotFound,
    ProviderRefused,
    ProviderTimeout,
)
from hiveyard.core.machines import Capabilities, Image, Report, Shape
from hiveyard.kit.text import one_line
from hiveyard.machines.morph import labels, scripts, statuses
from hiveyard.machines.morph.entrance import UID
from hiveyard.machines.morph.service import Service
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.morph.wire import Instance, Snapshot

T = TypeVar("T")
SNAPSHOT_TIME = 300.0  # seconds
TEARDOWN = 60.0
_PREPARING_TTL = 1800  # seconds: what a daemon killed while it prepares leaves does not live, or cost, for long
_LOOK = 0.3
_LOOK_MOST = 3.0
_ATTEMPTS = 3


class InstanceCreation:
    """Creates instances and snapshots of one service."""

    def __init__(self, service: Service, settings: MorphSettings, capabilities: Capabilities) -> None:
        self._service = service
        self._settings = settings
        self._capabilities = capabilities

    async def prepare(self, installation: str, image: Image, shape: Shape, report: Report) -> None:
        """Snapshot a base image with the commands' user in it. Raises NoSuchImage, BootTimeout, BootFailed."""
        bases = await self._service.bases()
        if image.id not in bases:
            known = ", ".join(sorted(bases)[:12]) or "none"
            raise NoSuchImage(f"Morph Cloud has no base image {image.id[:80]!r}", hint=f"its base images: {known}")
        report(f"booting {image.id} in Morph Cloud (once per image and size)")
        own = {labels.INSTALLATION: installation, labels.IMAGE: image.id}
        own[labels.PREPARED] = labels.of_prepared(image.id, shape, self._capabilities.home)
        for left in await self._service.instances(own):
            await self._service.end(left.id)
        instance = await self.once(
            own, lambda marked: self._service.boot_base(image.id, shape, marked, _PREPARING_TTL), self._found
        )
        try:
            await self.until_ready(instance.id, image.id)
            who = (str(UID), self._capabilities.home, self._capabilities.user, self._capabilities.session)
            await self._do(instance.id, image.id, (scripts.PREPARE, *who))
            report(f"keeping {image.id} as a snapshot")
            await self.keep(instance.id, own)
        finally:
            with anyio.CancelScope(shield=True):
                await self._service.end(instance.id)

    async def keep(self, instance: str, own: Mapping[str, str]) -> Snapshot:
        """Take a snapshot of an instance, and return it when it is ready."""
        snapshot = await self.once(
            own, lambda marked: self._service.take(instance, marked, SNAPSHOT_TIME), self._found_snapshot
        )
        try:
            return await self._kept(snapshot)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._service.drop(snapshot.id)
            raise

    async def _kept(self, snapshot: Snapshot) -> Snapshot:
        with anyio.move_on_after(SNAPSHOT_TIME):
            pause = _LOOK
            while snapshot.status == statuses.SNAPSHOT_COMING:
                await anyio.sleep(pause)
                pause = min(_LOOK_MOST, pause * 1.5)
                snapshot = await self._service.snapshot(snapshot.id)
        if snapshot.status != statuses.SNAPSHOT_READY:
            raise ProviderError(f"Morph Cloud says that a snapshot is {one_line(snapshot.status, 40)!r}")
        return snapshot

    async def once(
        self,
        own: Mapping[str, str],
        make: Callable[[Mapping[str, str]], Awaitable[T]],
        find: Callable[[Mapping[str, str]], Awaitable[T | None]],
    ) -> T:
        """Call `make` with the labels `own` and a unique one. If its answer is lost, `find` checks whether it was made
        before it is made again. Shielded from cancellation, which could leave an instance without an owner."""
        marked = {**own, labels.ATTEMPT: secrets.token_hex(8)}
        with anyio.CancelScope(shield=True):
            for attempt in range(_ATTEMPTS):
                try:
                    return await make(marked)
                except ProviderError as error:
                    found = await find(marked) if error.retry else None
                    if found is not None:
                        return found
                    if not error.retry or attempt == _ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returns or raises")

    async def settle(self, instance: Instance, name: str) -> Instance:
        """Complete an instance as the machine `name`. Raises BootTimeout, BootFailed."""
        await self.until_ready(instance.id, name)
        await self._do(instance.id, name, (scripts.SETTLE, name))
        return await self._service.label(instance.id, {**instance.metadata, labels.READY: "1"})

    async def until_ready(self, instance: str, name: str) -> Instance:
        pause = _LOOK
        with anyio.move_on_after(self._settings.boot_timeout):
            while True:
                seen = await self._service.instance(instance)
                if seen.status == "ready":
                    return seen
                if seen.status not in ("pending", "saving"):
                    raise BootFailed(f"{name} did not start: Morph Cloud calls it {one_line(seen.status, 40)!r}")
                await anyio.sleep(pause)
                pause = min(_LOOK_MOST, pause * 1.5)
        raise BootTimeout(f"{name} was not ready within {self._settings.boot_timeout:g}s", machine=name)

    async def _do(self, instance: str, name: str, words: Sequence[str]) -> None:
        """Run a script as root; it may be repeated."""
        script, *arguments = words
        done = await self._service.execute(instance, ("bash", "-c", script, "hv", *arguments))
        if done.exit_code != 0:
            raise BootFailed(f"{name} cannot be used: {one_line(done.stderr) or f'exit code {done.exit_code}'}")

    async def _found(self, marked: Mapping[str, str]) -> Instance | None:
        return next(iter(await self._service.instances(marked)), None)

    async def _found_snapshot(self, marked: Mapping[str, str]) -> Snapshot | None:
        return next(iter(await self._service.snapshots(marked)), None)

    async def start(self, own: Mapping[str, str], make: Callable[[Mapping[str, str]], Awaitable[Instance]]) -> Instance:
        """Create an instance with the labels `own`. Raises NoSuchImage if its image or snapshot no longer exists."""
        try:
            return await self.once(own, make, self._found)
        except (ProviderNotFound, ProviderRefused) as error:
            raise BootFailed(error.message, hint=error.hint) from error

    @asynccontextmanager
    async def branched(
        self, parent: Instance, own: Sequence[Mapping[str, str]], ours: Mapping[str, str]
    ) -> AsyncIterator[Sequence[Instance]]:
        """New instances. The snapshot that the service makes for them is removed at the end of the block, also when
        its answer was lost. Shielded: what is made while we are cancelled would be nobody's."""
        point = {**ours, labels.ATTEMPT: secrets.token_hex(8)}
        try:
            with anyio.CancelScope(shield=True):
                branched = await self._service.branch(parent.id, own, point, SNAPSHOT_TIME)
                made = await self._labelled(branched.instances, own)
            yield made
        finally:
            with anyio.CancelScope(shield=True):
                for left in await self._service.snapshots(point):
                    await self._service.drop(left.id)

    async def _labelled(self, made: Sequence[Instance], own: Sequence[Mapping[str, str]]) -> Sequence[Instance]:
        """Return the created instances in the order of the request. One without its label would never be found."""
        names = [one[labels.MACHINE] for one in own]
        found = {one.metadata.get(labels.MACHINE, ""): one for one in made}
        if sorted(found) == sorted(names) and len(made) == len(names):
            return [found[name] for name in names]
        for instance in made:
            await self._service.end(instance.id)
        raise ProviderBadAnswer("morph: what was forked has not the labels that it was to have")

    async def gone(self, name: str, find: Callable[[], Awaitable[Sequence[Instance]]]) -> None:
        """End all that `find` finds, until it is nothing: some is listed for a while after its end. Raises
        ProviderTimeout."""
        pause = 0.0
        there: Sequence[Instance] = ()
        with anyio.move_on_after(TEARDOWN):
            while there := await find():
                await anyio.sleep(pause)
                pause = min(_LOOK_MOST, max(_LOOK, pause * 1.5))
                for instance in there:
                    await self._service.end(instance.id)
            return
        left = ", ".join(instance.id for instance in there)
        raise ProviderTimeout(f"morph: {name} is not gone after {TEARDOWN:g}s: {left}", machine=name)
