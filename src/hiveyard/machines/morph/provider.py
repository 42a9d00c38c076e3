"""Provide VMs of Morph Cloud, which can be paused and forked with their memory.

They are `remote`: the network of a machine cannot be closed, no session directory is shared with it, and a session's
door is not reached from it yet. Images are the service's own; what `prepare` makes of one is a snapshot.

All that is kept of a machine is on its instance (labels): a daemon that starts anew finds its machines there.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from hiveyard.core.commands import Command
from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    BadInput,
    HiveyardError,
    MachineNotReady,
    NoSuchImage,
    NoSuchMachine,
    NoSuchSnapshot,
    ProviderBadAnswer,
    ProviderTimeout,
)
from hiveyard.core.machines import (
    Capabilities,
    Image,
    Machine,
    MachineSpec,
    MachineStatus,
    Network,
    Readiness,
    Report,
    Shape,
    Tier,
    WorkspaceKind,
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest, Meanwhile, SnapshotStats
from hiveyard.kit import names
from hiveyard.kit.lock import file_lock
from hiveyard.kit.refcount import RefCounted
from hiveyard.kit.secret import Secret
from hiveyard.machines.morph import labels, terminal
from hiveyard.machines.morph.client import Client
from hiveyard.machines.morph.create import TEARDOWN, InstanceCreation
from hiveyard.machines.morph.entrance import Entrance
from hiveyard.machines.morph.service import Service
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.morph.statuses import SNAPSHOT_READY, status_of, ttl_action_of
from hiveyard.machines.morph.wire import Instance, Snapshot
from hiveyard.machines.shared.installation import installation
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_log = logging.getLogger(__name__)
_LOOK = 0.3
_SERVICE_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?\Z")


@of_machines
class MorphProvider:
    """`state` belongs to this provider alone; it names the installation, whose instances are all it touches. `key`
    gives the service's key, or raises KeyMissing."""

    name = "morph"
    tier = Tier.VM

    def __init__(self, state: Path, key: Callable[[], Secret], settings: MorphSettings | None = None) -> None:
        self._state = state
        self._settings = settings or MorphSettings()
        self.capabilities = Capabilities(
            home=self._settings.home,
            workspace=WorkspaceKind.CARRIED,
            door_url="",
            closes_network=False,
            costs_money=True,
        )
        self._client = Client(self._settings, key)
        self._service = Service(self._client)
        self._making = InstanceCreation(self._service, self._settings, self.capabilities)
        self.opened = RefCounted(self._client.aclose).used
        self._booting: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def readiness(self) -> Readiness:
        try:
            bases = await self._service.bases(once=True)
        except HiveyardError as error:
            return Readiness(ok=False, detail=error.message, fix=error.hint or f"curl -I {self._settings.url}/image")
        return Readiness(ok=True, detail=f"{self._settings.url}; base images: {', '.join(sorted(bases)[:8])}")

    # --- images --------------------------------------------------------------------------------------------------

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        """`image.id` is that of a base image of the service (see `morph_image`); its rootfs is not used."""
        async with file_lock(self._state / f"prepare-{names.slug(image.id)}.lock"):
            if await self._prepared(image, shape) is None:
                await self._making.prepare(installation(self._state), image, shape, report)

    async def release_image(self, image_id: str) -> None:
        for snapshot in await self._service.snapshots({**self._own(), labels.IMAGE: image_id}):
            if labels.PREPARED in snapshot.metadata:
                await self._service.drop(snapshot.id)

    async def _prepared(self, image: Image, shape: Shape) -> Snapshot | None:
        wanted = {**self._own(), labels.PREPARED: labels.of_prepared(image.id, shape, self.capabilities.home)}
        ready = [one for one in await self._service.snapshots(wanted) if one.status == SNAPSHOT_READY]
        return ready[0] if ready else None

    # --- machines ------------------------------------------------------------------------------------------------

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        _check(name, spec)
        snapshot = await self._prepared(spec.image, spec.shape)
        if snapshot is None:
            raise NoSuchImage(
                f"Morph Cloud has no snapshot of the image {spec.image.id} for {spec.shape.cpus} processors and"
                f" {spec.shape.memory_mib} MiB",
                hint=f"hv image build {spec.image.name} --provider morph",
            )
        return await self._boot(name, spec, snapshot)

    async def _boot(self, name: str, spec: MachineSpec, snapshot: Snapshot) -> Machine:
        async with self._lock(name):
            there = await self._instances(name)
            if ready := [one for one in there if status_of(one).status is MachineStatus.READY]:
                return self._machine(name, ready[0])
            await self._end(name)
            async with self._making_of(name):
                own = labels.of_machine(installation(self._state), name, spec)
                made = await self._making.start(own, lambda marked: self._service.start(snapshot.id, marked, spec))
                made = await self._making.settle(made, name)
        return self._machine(name, made)

    @asynccontextmanager
    async def _making_of(self, *names: str) -> AsyncIterator[None]:
        """Remove the instances of `names` with all their remains if the block fails."""
        self._booting.update(names)
        try:
            yield
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(TEARDOWN):
                for name in names:
                    try:
                        await self._end(name)
                    except HiveyardError as error:  # the others cost money, too
                        _log.warning("machine %s of Morph Cloud may be left: %s", name, error.message)
            raise
        finally:
            self._booting.difference_update(names)

    async def get(self, name: str) -> Machine:
        return self._machine(name, await self._instance(name))

    async def list(self) -> list[Machine]:
        found: dict[str, Machine] = {}
        for instance in await self._service.instances(self._own()):
            if (name := instance.metadata.get(labels.MACHINE)) and name not in found:
                found[name] = self._machine(name, instance)
        return [found[name] for name in sorted(found)]

    async def names(self) -> set[str]:
        instances = await self._service.instances(self._own())
        return {one.metadata[labels.MACHINE] for one in instances if labels.MACHINE in one.metadata}

    async def stop(self, name: str) -> None:
        """Stop the machine. The service keeps its memory until it is terminated, and charges for that."""
        check_machine_name(name)
        async with self._lock(name):
            instance = await self._instance(name)
            if not labels.stopped(instance):
                await self._service.label(instance.id, {**instance.metadata, labels.PAUSED: labels.STOPPED})
            await self._freeze(instance)

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name):
            await self._end(name)

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        instance = await self._ready(name)
        entrance = Entrance(name, instance.id, self._service, self._settings, self.capabilities)
        yield ShellGuest(entrance, self.capabilities)

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        """Use the host's ssh program and the service's gateway. Raises ProviderUnavailable if the gateway's host
        key is not set; one that stands still has no terminal: what the gateway makes of it is not known."""
        words = terminal_words(secrets.token_hex(8), command, self.capabilities)
        instance = await self._ready(name)
        if instance.status != "ready":
            raise MachineNotReady(f"machine {name} is {instance.status}", hint="let it go on", machine=name)
        terminal.check(self._settings)
        key = await self._service.ssh_key(instance.id)
        return terminal.program(self._settings, instance.id, key, self.capabilities, self._keys(name), words)

    # --- pauses, snapshots, forks --------------------------------------------------------------------------------

    async def pause(self, name: str) -> None:
        async with self._lock(name):
            instance = await self._ready(name)
            if labels.stopped(instance):  # what its time to live was to do
                await self._service.label(instance.id, {**instance.metadata, labels.PAUSED: labels.FROZEN})
            await self._freeze(instance)

    async def resume(self, name: str) -> None:
        async with self._lock(name):
            instance = await self._ready(name)
            if instance.status == "paused":
                await self._service.resume(instance.id, self._settings.pause_timeout)
            await self._making.until_ready(instance.id, name)
            now = await self._instance(name)
            if now.metadata.get(labels.PAUSED) != labels.lifetime(now):
                await self._service.label(now.id, {**now.metadata, labels.PAUSED: labels.lifetime(now)})

    async def fork(self, name: str, children: Sequence[str], spec: MachineSpec) -> Sequence[Machine]:
        for child in children:
            _check(child, spec)
        if taken := (set(children) & await self.names()) or {one for one in children if children.count(one) > 1}:
            raise BadInput(f"there is a machine {', '.join(sorted(taken))} already")
        async with self._lock(name), self._making_of(*children):
            parent = await self._ready(name)
            own = [labels.of_child(parent, child, spec) for child in children]
            async with self._making.branched(parent, own, self._own()) as instances:
                made = [await self._settled(instance, spec) for instance in instances]
        return [self._machine(child, instance) for child, instance in zip(children, made, strict=True)]

    async def _settled(self, child: Instance, spec: MachineSpec) -> Instance:
        settled = await self._making.settle(child, child.metadata[labels.MACHINE])
        return settled if spec.ttl is None else await self._service.live(child.id, spec)

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        """`seconds` is how long the service took; its space is not on this host. The machine is paused only for
        `meanwhile`."""
        check_machine_name(snapshot)
        async with self._lock(name):
            instance = await self._ready(name)
            own = {**self._own(), labels.SNAPSHOT: snapshot, labels.IMAGE: instance.metadata.get(labels.IMAGE, "")}
            before = await self._service.snapshots({**self._own(), labels.SNAPSHOT: snapshot})
            begun = anyio.current_time()
            async with self._still(instance if meanwhile is not None else None):
                made = await self._making.keep(instance.id, own)
                try:
                    if meanwhile is not None:
                        await meanwhile()
                except BaseException:
                    with anyio.CancelScope(shield=True):
                        await self._service.drop(made.id)
                    raise
            for old in before:
                await self._service.drop(old.id)
            return SnapshotStats(anyio.current_time() - begun, 0)

    @asynccontextmanager
    async def _still(self, instance: Instance | None) -> AsyncIterator[None]:
        """Pause an instance for the block. An instance that was paused before stays paused."""
        if instance is None or instance.status == "paused":
            yield
            return
        await self._freeze(instance)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._service.resume(instance.id, self._settings.pause_timeout)

    async def make_ready(self, snapshot: str) -> None:
        await self._kept(snapshot)

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        _check(name, spec)
        return await self._boot(name, spec, await self._kept(snapshot))

    async def _kept(self, snapshot: str) -> Snapshot:
        for found in await self._service.snapshots({**self._own(), labels.SNAPSHOT: snapshot}):
            if found.status == SNAPSHOT_READY:
                return found
        raise NoSuchSnapshot(f"Morph Cloud has no snapshot {snapshot}")

    async def snapshots(self) -> set[str]:
        found = await self._service.snapshots(self._own())
        return {one.metadata[labels.SNAPSHOT] for one in found if labels.SNAPSHOT in one.metadata}

    async def remove_snapshot(self, snapshot: str) -> None:
        for found in await self._service.snapshots({**self._own(), labels.SNAPSHOT: snapshot}):
            await self._service.drop(found.id)

    # --- ports ---------------------------------------------------------------------------------------------------

    async def expose(self, name: str, service: str, port: int) -> str:
        """Return the internet address of a port of the machine. It can be used with the service's key."""
        if not _SERVICE_NAME.match(service):
            raise BadInput(f"{service[:80]!r} is no name for a port: 1 to 40 of a-z, 0-9, - and _, none at the ends")
        if not 1 <= port <= 65535:
            raise BadInput(f"{port} is no port: 1 to 65535")
        seen = await self._service.expose((await self._ready(name)).id, service, port)
        for one in seen.networking.http_services:
            if one.name == service:
                return one.url
        raise ProviderBadAnswer(f"morph: the port {port} of {name} got no address")

    async def conceal(self, name: str, service: str) -> None:
        """Close a port. An absent one is a success."""
        await self._service.conceal((await self._ready(name)).id, service)

    # --- helpers -------------------------------------------------------------------------------------------------

    def _machine(self, name: str, instance: Instance) -> Machine:
        status, reason = status_of(instance, booting=name in self._booting)
        ends_at = instance.ttl.ttl_expire_at
        return Machine(
            name=name,
            status=status,
            provider=self.name,
            image=instance.metadata.get(labels.IMAGE, ""),
            created_at=float(instance.created),
            reason=reason,
            metadata=labels.metadata(instance),
            ends_at=None if ends_at is None else float(ends_at),
            ttl_action=None if ends_at is None else ttl_action_of(instance),
        )

    async def _instances(self, name: str) -> Sequence[Instance]:
        """Return all instances of that name: the usable ones first, then the newest."""
        check_machine_name(name)
        found = await self._service.instances({**self._own(), labels.MACHINE: name})
        return sorted(found, key=lambda one: labels.READY not in one.metadata)

    async def _instance(self, name: str) -> Instance:
        for instance in await self._instances(name):
            return instance
        raise NoSuchMachine(f"no machine {name}", hint="hv ps", machine=name)

    async def _ready(self, name: str) -> Instance:
        instance = await self._instance(name)
        machine = self._machine(name, instance)
        if machine.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {machine.status}", hint=machine.reason, machine=name)
        return instance

    async def _freeze(self, instance: Instance) -> None:
        """Wait until an instance is paused. One that failed counts as paused."""
        if instance.status in ("paused", "error"):
            return
        seen = await self._service.pause(instance.id, self._settings.pause_timeout)
        with anyio.move_on_after(self._settings.pause_timeout):
            while seen.status in ("ready", "saving"):
                await anyio.sleep(_LOOK)
                seen = await self._service.instance(instance.id)
        if seen.status in ("ready", "saving"):
            raise ProviderTimeout(
                f"morph: {instance.id} is {seen.status} and did not stand still in {self._settings.pause_timeout:g}s",
                hint="set pause_timeout in section [morph] of the settings",
            )

    async def _end(self, name: str) -> None:
        """Wait until no instance has the name any more. Raises ProviderTimeout."""
        await self._making.gone(name, lambda: self._instances(name))
        if (keys := self._keys(name)).exists():
            await anyio.to_thread.run_sync(shutil.rmtree, keys)

    def _keys(self, name: str) -> Path:
        """Return the directory of the keys for a machine's terminals."""
        return self._state / "terminals" / name

    def _own(self) -> dict[str, str]:
        return {labels.INSTALLATION: installation(self._state)}

    def _lock(self, name: str) -> anyio.Lock:
        """Hold the lock for changes of a machine."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = anyio.Lock()
        return lock


def morph_image(id: str) -> Image:
    """Return a base image of the service as an Image for `prepare` and `boot`."""
    return Image(id=id, name=id, rootfs=Path("/"))


def _check(name: str, spec: MachineSpec) -> None:
    """Refuse a spec with parts that Morph Cloud cannot provide. Raises BadInput."""
    check_machine_name(name)
    if spec.network is not Network.OPEN:
        raise BadInput("Morph Cloud cannot close the network of a machine", hint="ask for it: network open")
    if spec.door is not None or spec.session is not None:
        raise BadInput("a machine of Morph Cloud shares no directory with this host, and reaches no door of it")
    if spec.ttl is not None and spec.ttl < 1:
        raise BadInput(f"the time to live is {spec.ttl} seconds, the least is 1")
