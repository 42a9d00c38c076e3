"""Run machines as containers of Docker Engine or Podman: tier `container`, a fraction of a second each.

A container has one unprivileged user, no capabilities and no new privileges. System calls are filtered by the engine
and by our own filter (shared/seccomp.py). The root file system is read-only, /tmp and /run are in memory, /home/agent
is new. Memory, processors and processes are limited. The network is a loopback with the session's door, or the engine's
default network if that is requested.

The record of a machine is its container's labels. Only whether it was stopped on purpose is a file of the provider.

The kernel is shared with the host: a kernel bug that helps a local user helps a machine.
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
from hiveyard.machines.docker.engine import Engine, engine_errors
from hiveyard.machines.docker.entrance import EXISTING, PAUSED_POLL, Entrance, paused
from hiveyard.machines.docker.hijack import hijacked
from hiveyard.machines.docker.ownership import Sharing
from hiveyard.machines.docker.settings import DockerSettings
from hiveyard.machines.shared import seccomp
from hiveyard.machines.shared.installation import installation
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_OUTPUT_LIMIT = 4096
_TEARDOWN = 60.0  # seconds: an engine under load may need long to remove a container


@of_machines
class DockerProvider:
    """A provider. Only it may use `state`, which names the installation. It changes no containers of others."""

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
        """Run a container for a moment, with the same restrictions as those of machines."""
        async with self._engine.connect() as client:
            image = await imported.import_trial(client)
            nothing = MachineSpec(image=Image(id="trial", name="trial", rootfs=Path()), shape=Shape(memory_mib=128))
            body = container.config("trial", nothing, Shared(None, None), installation(self._state), owner, cpus=1)
            body |= {"Image": image, "Entrypoint": ["/trial"], "Labels": dict(container.trial_labels())}
            with engine_errors("trying a container"):
                await self._remove_old_trials(client)
                made = await client.containers.create(body, name=f"hiveyard-trial-{names.new_id()}")
                try:
                    await made.start()
                    ended = await made.wait()
                finally:
                    with anyio.CancelScope(shield=True):
                        await made.delete(force=True, v=True)
        if ended.get("StatusCode") != 0:
            raise ProviderError(f"a trial container exited with {ended.get('StatusCode')}", hint="docker info")

    async def _remove_old_trials(self, client: Docker) -> None:
        """Remove trial containers of daemons that were killed."""
        wanted = {"label": [f"{container.INSTALLATION}={container.TRIAL}"]}
        for made in await client.containers.list(all=True, filters=json.dumps(wanted)):
            if container.is_left_over(made["Labels"]):
                with _tolerating(404, 409):  # another process removes it
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
        """Do nothing: an engine removes the remains of its imports itself."""

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
        async with self._sharing.exposed(name, Shared(spec.session, spec.door), owner) as shared:
            # Executable but not readable: then no program of the guest can trace it before the filter is applied.
            confine = seccomp.install(self._state / f"confine-{seccomp.fingerprint()}", 0o111)
            body = container.config(name, spec, shared, installation(self._state), owner, about.cpus, confine)
            ident = await self._create(client, name, spec, body)
            with engine_errors(f"starting the container of {name}"):
                await self._until_ready(client, name, ident)

    async def _create(self, client: Docker, name: str, spec: MachineSpec, body: dict[str, JSONValue]) -> str:
        """Create a container. Shielded: a cancelled request could still create one, which nobody would remove."""
        ident = self._container(name)
        with engine_errors(f"creating the container of {name}"):
            try:
                with anyio.fail_after(self._settings.boot_timeout, shield=True):
                    created = await client.containers.create(body, name=ident)
            except DockerError as error:
                raise _refused(error, name, spec, ident) from error
        return created.id

    async def _until_ready(self, client: Docker, name: str, ident: str) -> None:
        """Start the container, and wait until process 1 reports that the machine is ready."""
        path = f"/{client.api_version}/containers/{ident}/attach?stream=1&stdout=1&stderr=1"
        output = bytearray()
        async with hijacked(self._engine.socket, path, {}) as process:
            try:
                with anyio.fail_after(self._settings.boot_timeout):
                    await client.containers.container(ident).start()
                    while not output.endswith(b"ready\n") and len(output) < _OUTPUT_LIMIT:
                        piece = await process.receive(error=False)
                        if not piece:
                            break
                        output += piece
            except TimeoutError:
                timeout = self._settings.boot_timeout
                raise BootTimeout(f"{name} was not ready within {timeout:g}s", hint="hv doctor") from None
            except DockerError as error:
                raise BootFailed(f"{name} did not start: {one_line(str(error.message), 400)}") from error
        if not output.endswith(b"ready\n"):
            why = one_line(decode(bytes(output))) or "its process 1 ended without output"
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
            with contextlib.suppress(NoSuchMachine):  # it was removed since
                found.append(await self.get(name))
        return found

    async def names(self) -> set[str]:
        wanted = {"label": [f"{container.INSTALLATION}={installation(self._state)}"]}
        async with self._engine.connect() as client:
            with engine_errors("listing containers"):
                found = await client.containers.list(all=True, filters=json.dumps(wanted))
        return {made["Labels"][container.MACHINE] for made in found if container.MACHINE in made["Labels"]}

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            if await self._inspect(client, name) is None:
                raise _absent(name)
            files.write_atomic(self._stopped(name), b"")
            await self._unpause(client, name)  # Podman does not stop a paused container
            # No program in a machine needs a grace period: its processes are stopped before by whatever started them.
            with engine_errors(f"stopping {name}"), _tolerating(304, 409):
                await client.containers.container(self._container(name)).stop(t=0)

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            await self._remove(client, name)

    async def pause(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            if not paused(await self._ready(client, name)):
                # Shielded: a cancelled request could still freeze it later, after it was resumed.
                with engine_errors(f"freezing {name}"), anyio.fail_after(_TEARDOWN, shield=True):
                    try:
                        await client.containers.container(self._container(name)).pause()
                    except DockerError as error:
                        raise _cannot_freeze(error, name) from error

    async def resume(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name), self._engine.connect() as client:
            await self._ready(client, name)
            await self._unpause(client, name)

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        check_machine_name(name)
        about = await self._engine.about()
        async with self._engine.connect() as client:
            while paused(seen := await self._ready(client, name)):  # noqa: ASYNC110 (an engine sends no event)
                await anyio.sleep(PAUSED_POLL)
        token = secrets.token_hex(8)
        argv = terminal_words(token, command, self.capabilities)
        who, confined = str(ownership.owner(about)), container.CONFINED if container.is_confined(seen) else ()
        socket, api = str(self._engine.socket), f"/v{about.api}"
        return terminal.program(socket, api, self._container(name), who, token, argv, confined)

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        check_machine_name(name)
        owner = ownership.owner(await self._engine.about())
        async with self._engine.connect() as client:
            seen = await self._ready(client, name)
            pids = int(_labels(seen)[container.PIDS])
            prefix = container.CONFINED if container.is_confined(seen) else ()
            entrance = Entrance(name, self._container(name), str(owner), pids, self._engine, client, prefix)
            try:
                yield ShellGuest(entrance, self.capabilities)
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                    await entrance.close()

    # --- internals -------------------------------------------------------------------------------------------------

    async def _remove(self, client: Docker, name: str) -> None:
        """Remove a container with its volumes; a missing one is a success."""
        with engine_errors(f"removing {name}"):
            while await self._inspect(client, name) is not None:
                # 409: another process is removing it; the next look shows the result.
                with _tolerating(404, 409):
                    await client.containers.container(self._container(name)).delete(force=True, v=True)
                    break
                await anyio.sleep(0.05)
        self._sharing.unmount(name)
        self._stopped(name).unlink(missing_ok=True)

    async def _unpause(self, client: Docker, name: str) -> None:
        """Let a container continue; one that runs or has ended is a success."""
        if paused(await self._inspect(client, name) or {}):
            with engine_errors(f"unpausing {name}"), _tolerating(404):
                await client.containers.container(self._container(name)).unpause()

    async def _inspect(self, client: Docker, name: str) -> Mapping[str, Any] | None:
        """Return the engine's description of a machine's container, None if this installation has none."""
        with engine_errors(f"inspecting {name}"):
            try:
                seen = await client.containers.container(self._container(name)).show()
            except DockerError as error:
                if error.status == 404:
                    return None
                raise
        return seen if _labels(seen).get(container.INSTALLATION) == installation(self._state) else None

    async def _ready(self, client: Docker, name: str) -> Mapping[str, Any]:
        """Return the description of a ready machine's container. Raises NoSuchMachine, MachineNotReady."""
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
        if state["Status"] in EXISTING:
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


def _cannot_freeze(error: DockerError, name: str) -> CannotFreeze:
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
        return BootFailed(
            f"the name {ident} is used by a container that is not of this installation", hint=f"docker rm -f {ident}"
        )
    return error
