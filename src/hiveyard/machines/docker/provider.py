"""Machines made of containers by Docker Engine or Podman: tier `container`, a fraction of a second each.

    one user without privileges, no capabilities, no new privileges, the engine's seccomp filter; the root file system
    read-only; /tmp and /run in memory; /home/agent fresh; memory, processors and processes limited; no network but a
    loopback on which the session's door answers (or the engine's default network, when it is asked for).

All that is kept of a machine is on its container (labels); only that it was stopped on purpose is a file here.

The kernel is shared with the host: what a kernel bug gives to a local user it gives to a machine.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from aiodocker.types import JSONValue

from hiveyard.core.commands import Command
from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    BootFailed,
    BootTimeout,
    CannotFreeze,
    HiveyardError,
    MachineNotReady,
    NoSuchImage,
    NoSuchMachine,
    ProviderError,
)
from hiveyard.core.machines import (
    Capabilities,
    Image,
    Machine,
    MachineSpec,
    MachineStatus,
    Readiness,
    Report,
    Shape,
    StoredItem,
    Tier,
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest
from hiveyard.kit import files, names
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.docker import container, imported, ownership, terminal
from hiveyard.machines.docker.container import Owner, Shared
from hiveyard.machines.docker.engine import Engine, foreign
from hiveyard.machines.docker.entrance import LIVING, PAUSED_LOOK, Entrance, paused
from hiveyard.machines.docker.hijack import hijacked
from hiveyard.machines.docker.ownership import Sharing
from hiveyard.machines.docker.settings import DockerSettings
from hiveyard.machines.shared.installation import installation
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_SAID_LIMIT = 4096
_TEARDOWN = 60.0  # seconds: an engine under load takes its time to remove a container


@of_machines
class DockerProvider:
    """`state` belongs to this provider alone; it names the installation, whose containers are all it touches."""

    name = "docker"
    tier = Tier.CONTAINER
    capabilities = Capabilities()

    def __init__(self, state: Path, settings: DockerSettings | None = None) -> None:
        self._state = state
        self._settings = settings or DockerSettings()
        self._engine = Engine(self._settings.socket)
        self._sharing = Sharing(state / "shown")
        self._booting: set[str] = set()
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()

    # --- readiness ----------------------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        try:
            about = await self._engine.about()
            owner = ownership.owner(about)
            await self._trial(owner)
        except HiveyardError as error:
            return Readiness(ok=False, detail=error.message, fix=error.hint)
        limited = ", ".join(about.limits) or "nothing"
        who = "rootless" if about.rootless else "rootful"
        detail = f"{about.name} {about.version}, {who}; limited: {limited}; disk not limited"
        return Readiness(ok=True, detail=detail)

    async def _trial(self, owner: Owner) -> None:
        """Run a container for a moment, confined as all of ours are."""
        async with self._engine.connect() as client:
            image = await imported.import_trial(client)
            nothing = MachineSpec(image=Image(id="trial", name="trial", rootfs=Path()), shape=Shape(memory_mib=128))
            body = container.config("trial", nothing, Shared(None, None), installation(self._state), owner, cpus=1)
            body |= {"Image": image, "Entrypoint": ["/trial"], "Labels": dict(container.trial_labels())}
            with foreign("trying a container"):
                await self._forget_trials(client)
                made = await client.containers.create(body, name=f"hiveyard-trial-{names.new_id()}")
                try:
                    await made.start()
                    ended = await made.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        await made.delete(force=True, v=True)
        if ended.get("StatusCode") != 0:
            raise ProviderError(f"a container for trial ended with {ended.get('StatusCode')}", hint="docker info")

    async def _forget_trials(self, client: Docker) -> None:
        """Remove what daemons left that were killed while they tried."""
        wanted = {"label": [f"{container.INSTALLATION}={container.TRIAL}"]}
        for made in await client.containers.list(all=True, filters=json.dumps(wanted)):
            if container.is_left(made["Labels"]):
                with _tolerating(404, 409):  # somebody else removes it
                    await made.delete(force=True, v=True)

    # --- images -------------------------------------------------------------------------------------------------

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        await self._engine.about()
        async with self._engine.connect() as client:
            await imported.import_image(client, image, self._state, report)

    async def release_image(self, image_id: str) -> None:
        async with self._engine.connect() as client:
            await imported.remove_image(client, image_id)

    async def stored_items(self) -> list[StoredItem]:
        async with self._engine.connect() as client:
            return await imported.stored_items(client)

    async def discard(self, holding: StoredItem) -> None:
        """An engine removes what is left of its own imports itself."""

    # --- machines -----------------------------------------------------------------------------------------------

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            if await self._status_of(client, name) is MachineStatus.READY:
                return await self.get(name)
            await self._remove(client, name)
            self._booting.add(name)
            try:
                await self._start(client, name, spec)
            except BaseException:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_TEARDOWN):
                    await self._remove(client, name)
                raise
            finally:
                self._booting.discard(name)
        return await self.get(name)

    async def _start(self, client: Docker, name: str, spec: MachineSpec) -> None:
        about = await self._engine.about()
        owner = ownership.owner(about)
        async with self._sharing.shown(name, Shared(spec.session, spec.door), owner) as shared:
            body = container.config(name, spec, shared, installation(self._state), owner, about.cpus)
            ident = await self._create(client, name, spec, body)
            with foreign(f"starting the container of {name}"):
                await self._until_ready(client, name, ident)

    async def _create(self, client: Docker, name: str, spec: MachineSpec, body: dict[str, JSONValue]) -> str:
        """Shielded: a request that is let go of may still make a container, when nobody looks for it any more."""
        ident = self._container(name)
        with foreign(f"making the container of {name}"):
            try:
                with anyio.fail_after(self._settings.boot_timeout, shield=True):
                    made = await client.containers.create(body, name=ident)
            except DockerError as error:
                raise _refused(error, name, spec, ident) from error
        return made.id

    async def _until_ready(self, client: Docker, name: str, ident: str) -> None:
        """Start it, and wait until process 1 says that the machine is as it has to be."""
        path = f"/{client.api_version}/containers/{ident}/attach?stream=1&stdout=1&stderr=1"
        said = bytearray()
        async with hijacked(self._engine.socket, path, {}) as output:
            try:
                with anyio.fail_after(self._settings.boot_timeout):
                    await client.containers.container(ident).start()
                    while not said.endswith(b"ready\n") and len(said) < _SAID_LIMIT:
                        piece = await output.receive(error=False)
                        if not piece:
                            break
                        said += piece
            except TimeoutError:
                patience = self._settings.boot_timeout
                raise BootTimeout(f"{name} was not ready within {patience:g}s", hint="hv doctor") from None
            except DockerError as error:
                raise BootFailed(f"{name} did not start: {one_line(str(error.message), 400)}") from error
        if not said.endswith(b"ready\n"):
            why = one_line(decode(bytes(said))) or "its process 1 ended without a word"
            raise BootFailed(f"{name} did not start: {why}", machine=name)

    async def get(self, name: str) -> Machine:
        check_machine_name(name)
        async with self._engine.connect() as client:
            seen = await self._inspect(client, name)
        if seen is None:
            raise _absent(name)
        return self._machine(name, seen)

    async def list(self) -> list[Machine]:
        found = []
        for name in sorted(await self.names()):
            with contextlib.suppress(NoSuchMachine):  # it went away while we looked
                found.append(await self.get(name))
        return found

    async def names(self) -> set[str]:
        wanted = {"label": [f"{container.INSTALLATION}={installation(self._state)}"]}
        async with self._engine.connect() as client:
            with foreign("listing containers"):
                found = await client.containers.list(all=True, filters=json.dumps(wanted))
        return {made["Labels"][container.MACHINE] for made in found if container.MACHINE in made["Labels"]}

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            if await self._inspect(client, name) is None:
                raise _absent(name)
            files.write_atomic(self._stopped(name), b"")
            await self._unpause(client, name)  # Podman does not stop what stands still
            # Nothing in a machine waits for a farewell: its processes are stopped before, by who started them.
            with foreign(f"stopping {name}"), _tolerating(304, 409):
                await client.containers.container(self._container(name)).stop(t=0)

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            await self._remove(client, name)

    async def pause(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            if not paused(await self._ready(client, name)):
                # Shielded: a request that is let go of may freeze it later, when it was let go on already.
                with foreign(f"freezing {name}"), anyio.fail_after(_TEARDOWN, shield=True):
                    try:
                        await client.containers.container(self._container(name)).pause()
                    except DockerError as error:
                        raise _unfrozen(error, name) from error

    async def resume(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            await self._ready(client, name)
            await self._unpause(client, name)

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        check_machine_name(name)
        about = await self._engine.about()
        async with self._engine.connect() as client:
            while paused(await self._ready(client, name)):  # noqa: ASYNC110 (an engine does not tell)
                await anyio.sleep(PAUSED_LOOK)
        token = secrets.token_hex(8)
        argv = terminal_words(token, command, self.capabilities)
        who = str(ownership.owner(about))
        return terminal.program(str(self._engine.socket), f"/v{about.api}", self._container(name), who, token, argv)

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        check_machine_name(name)
        owner = ownership.owner(await self._engine.about())
        async with self._engine.connect() as client:
            seen = await self._ready(client, name)
            pids = int(_labels(seen)[container.PIDS])
            entrance = Entrance(name, self._container(name), str(owner), pids, self._engine, client)
            try:
                yield ShellGuest(entrance, self.capabilities)
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await entrance.close()

    # --- within -------------------------------------------------------------------------------------------------

    async def _remove(self, client: Docker, name: str) -> None:
        """Remove a container with its volumes; absent is a success."""
        with foreign(f"removing {name}"):
            while await self._inspect(client, name) is not None:
                # 409: it is being removed by somebody else; the next look sees how that went.
                with _tolerating(404, 409):
                    await client.containers.container(self._container(name)).delete(force=True, v=True)
                    break
                await anyio.sleep(0.05)
        self._sharing.forget(name)
        self._stopped(name).unlink(missing_ok=True)

    async def _unpause(self, client: Docker, name: str) -> None:
        """Let a container go on; one that runs, and one that has ended, is a success."""
        if paused(await self._inspect(client, name) or {}):
            with foreign(f"letting {name} go on"), _tolerating(404):
                await client.containers.container(self._container(name)).unpause()

    async def _inspect(self, client: Docker, name: str) -> Mapping[str, Any] | None:
        """The container of a machine as the engine shows it; None when there is none of this installation."""
        with foreign(f"looking at {name}"):
            try:
                seen = await client.containers.container(self._container(name)).show()
            except DockerError as error:
                if error.status == 404:
                    return None
                raise
        return seen if _labels(seen).get(container.INSTALLATION) == installation(self._state) else None

    async def _ready(self, client: Docker, name: str) -> Mapping[str, Any]:
        """The container of a machine that is ready. Raises NoSuchMachine, MachineNotReady."""
        seen = await self._inspect(client, name)
        if seen is None:
            raise _absent(name)
        machine = self._machine(name, seen)
        if machine.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {machine.status}", hint=machine.reason, machine=name)
        return seen

    async def _status_of(self, client: Docker, name: str) -> MachineStatus | None:
        seen = await self._inspect(client, name)
        return None if seen is None else self._machine(name, seen).status

    def _machine(self, name: str, seen: Mapping[str, Any]) -> Machine:
        labels = _labels(seen)
        status, reason = self._status(name, seen["State"])
        return Machine(
            name=name,
            status=status,
            provider=self.name,
            image=labels.get(container.IMAGE, ""),
            created_at=float(labels.get(container.CREATED, "0")),
            reason=reason,
            metadata=json.loads(labels.get(container.METADATA, "{}")),
        )

    def _status(self, name: str, state: Mapping[str, Any]) -> tuple[MachineStatus, str]:
        if name in self._booting:
            return MachineStatus.BOOTING, ""
        if state["Status"] in LIVING:
            return MachineStatus.READY, ""
        if self._stopped(name).exists():
            return MachineStatus.STOPPED, ""
        if state["Status"] == "created":
            return MachineStatus.ERROR, "its start was interrupted"
        if state.get("OOMKilled"):
            return MachineStatus.ERROR, "it used more memory than it had"
        return MachineStatus.ERROR, f"its container is {state['Status']}: exit code {state.get('ExitCode')}"

    def _container(self, name: str) -> str:
        return f"hiveyard-{installation(self._state)}-{name}"

    def _stopped(self, name: str) -> Path:
        return self._state / "stopped" / name

    def _lock(self, name: str) -> anyio.Lock:
        """One change of a machine at a time."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = anyio.Lock()
        return lock


@contextlib.contextmanager
def _tolerating(*statuses: int) -> Iterator[None]:
    try:
        yield
    except DockerError as error:
        if error.status not in statuses:
            raise


def _unfrozen(error: DockerError, name: str) -> CannotFreeze:
    return CannotFreeze(f"{name} cannot be frozen: {one_line(str(error.message), 400)}", machine=name)


def _absent(name: str) -> NoSuchMachine:
    return NoSuchMachine(f"no machine {name}", hint="hv ps", machine=name)


def _labels(seen: Mapping[str, Any]) -> Mapping[str, str]:
    labels = seen["Config"].get("Labels")
    return labels if isinstance(labels, dict) else {}


def _refused(error: DockerError, name: str, spec: MachineSpec, ident: str) -> Exception:
    if error.status == 404:
        return NoSuchImage(
            f"the image {spec.image.id} is not in the container engine", hint=f"hv image build {spec.image.name}"
        )
    if error.status == 409:
        return BootFailed(f"the name {ident} is taken by a container of somebody else", hint=f"docker rm -f {ident}")
    return error
