"""Provide machines of an external program: any executable that speaks the protocol of docs/external-provider.md.

Each provider object has one program, which is started when it is first needed. It decides what its machines are and how
they are isolated. It runs with the permissions of this process and is trusted accordingly, but its answers are checked
as if it were not.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    BadInput,
    BootFailed,
    BootTimeout,
    HiveyardError,
    MachineNotReady,
    NoSuchMachine,
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
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest
from hiveyard.kit.refcount import RefCounted
from hiveyard.kit.text import one_line
from hiveyard.machines.external import wire
from hiveyard.machines.external.entrance import Entrance
from hiveyard.machines.external.program import Program
from hiveyard.machines.external.settings import ExternalSettings
from hiveyard.machines.shared.shell import ShellGuest

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
_TEARDOWN = 60.0


@of_machines
class ExternalProvider:
    """`command` is the program with its arguments, which every user of this host can read: it must contain no secret.
    `env` is its complete environment; the values are masked in its output. `state` is its own directory.

    The program describes its machines when it is first used, by `opened`, `readiness` or any other verb.
    Before that `tier` is the least there is, and `capabilities` are `unheard`, for who has to go on without them, or
    BadInput. Without `opened`, call `aclose` at the end."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        state: Path,
        *,
        env: Mapping[str, str],
        settings: ExternalSettings | None = None,
        unheard: Capabilities | None = None,
    ) -> None:
        if not _NAME.match(name):
            raise BadInput(f"{name[:80]!r} is no name for a provider: 1 to 31 of a-z, 0-9 and -, a letter first")
        if not command or not command[0] or any("\0" in word for word in command):
            raise BadInput(f"the provider {name} has no command", hint='command = ["/path/to/program", "ARGUMENT"]')
        self.name = name
        self.tier = Tier.NAMESPACE
        self._capabilities = unheard
        self._settings = settings or ExternalSettings()
        self._program = Program(name, command, state, env, self._settings, self._greeted)
        self._known: wire.Hello | None = None
        self._shared = RefCounted(self._program.aclose)
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise BadInput(
                f"what the machines of {self.name} are is not known: its program has not been asked yet",
                hint="async with Orchestrator(...) as orchestrator: ..., or async with provider.opened(): ...",
            )
        return self._capabilities

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with self._shared.used():
            await self._program.talk()
            yield

    async def aclose(self) -> None:
        """End the program; machines stay."""
        await self._program.aclose()

    def _greeted(self, hello: wire.Hello) -> None:
        if self._known is not None and self._known != hello:
            raise ProviderBadAnswer(f"{self.name}: its program was another one before, by its own hello")
        self._known = hello
        self.tier = hello.tier
        self._capabilities = hello.capabilities.capabilities()

    async def readiness(self) -> Readiness:
        try:
            works = await self._program.ask("readiness", wire.Works, self._settings.request_timeout)
        except HiveyardError as error:
            return Readiness(ok=False, detail=error.message, fix=error.hint)
        return Readiness(ok=works.ok, detail=one_line(works.detail, 400), fix=one_line(works.fix, 400))

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        asked = {"image": _image(image), "shape": _shape(shape)}
        await self._program.ask("prepare", object, self._settings.prepare_timeout, asked, report)

    async def release_image(self, image_id: str) -> None:
        await self._program.ask("release_image", object, self._settings.boot_timeout, {"image": image_id})

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        async with self._lock(name):
            await self._program.talk()  # from here on it is known what it can do
            self._check(spec)
            try:
                there = await self.get(name)
            except NoSuchMachine:
                there = None
            if there is not None and there.status is MachineStatus.READY:
                return there
            try:
                return await self._boot(name, spec)
            except BaseException:
                # If this fails, too, the next `names` reports the machine. The error of the boot matters more.
                shield = anyio.move_on_after(_TEARDOWN, shield=True)
                with shield, contextlib.suppress(HiveyardError):
                    await self._terminate(name)
                raise

    async def _boot(self, name: str, spec: MachineSpec) -> Machine:
        asked = {"name": name, "image": _image(spec.image), "shape": _shape(spec.shape), **_rest(spec)}
        try:
            info = await self._program.ask("boot", wire.MachineInfo, self._settings.boot_timeout, asked)
        except ProviderTimeout as error:
            raise BootTimeout(error.message, hint=error.hint, machine=name) from error
        machine = self._machine(info, name)
        if machine.status is not MachineStatus.READY:
            why = machine.reason or f"it is {machine.status}"
            raise BootFailed(f"machine {name} did not start: {why}", machine=name)
        return machine

    def _check(self, spec: MachineSpec) -> None:
        """Refuse a spec with parts that remote machines cannot have. Raises BadInput."""
        if not self.capabilities.remote:
            return
        if spec.network is not Network.OPEN:
            raise BadInput(f"{self.name} cannot close the network of a machine", hint="ask for it: network open")
        if spec.door is not None or spec.session is not None:
            raise BadInput(f"a machine of {self.name} shares no directory with this host, and reaches no door of it")

    async def get(self, name: str) -> Machine:
        check_machine_name(name)
        info = await self._program.ask("get", wire.MachineInfo, self._settings.request_timeout, {"name": name})
        return self._machine(info, name)

    async def list(self) -> list[Machine]:
        info = await self._program.ask("list", list[wire.MachineInfo], self._settings.request_timeout)
        return [self._machine(one, one.name) for one in info]

    async def names(self) -> set[str]:
        info = await self._program.ask("names", set[str], self._settings.request_timeout)
        return {self._name(name) for name in info}

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name):
            await self._program.ask("stop", object, self._settings.boot_timeout, {"name": name})

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with self._lock(name):
            await self._terminate(name)

    async def _terminate(self, name: str) -> None:
        await self._program.ask("terminate", object, self._settings.boot_timeout, {"name": name})

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        machine = await self.get(name)
        if machine.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {machine.status}", hint=machine.reason, machine=name)
        entrance = Entrance(name, self._program, lambda: self.get(name), self._settings.request_timeout)
        yield ShellGuest(entrance, self.capabilities)

    def _machine(self, info: wire.MachineInfo, name: str) -> Machine:
        if info.name != name:
            raise ProviderBadAnswer(
                f"{self.name}: asked about {name}, its program answered about {one_line(info.name, 80)!r}"
            )
        return Machine(
            name=self._name(info.name),
            status=info.status,
            provider=self.name,
            image=one_line(info.image),
            created_at=info.created_at,
            reason=one_line(info.reason, 400),
            metadata=info.metadata,
            ends_at=info.ends_at,
            ttl_action=info.ttl_action,
        )

    def _name(self, name: str) -> str:
        try:
            return check_machine_name(name)
        except BadInput as error:
            raise ProviderBadAnswer(f"{self.name}: its program described an invalid machine: {error.message}") from None

    def _lock(self, name: str) -> anyio.Lock:
        """Hold the lock for changes of a machine."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = anyio.Lock()
        return lock


def _image(image: Image) -> dict[str, object]:
    return {"id": image.id, "name": image.name, "rootfs": str(image.rootfs), "env": dict(image.env)}


def _shape(shape: Shape) -> dict[str, object]:
    return {
        "memory_mib": shape.memory_mib,
        "cpus": shape.whole_cpus,
        "disk_gib": shape.disk_gib,
        "pids": shape.pids,
    }


def _rest(spec: MachineSpec) -> dict[str, object]:
    return {
        "session": None if spec.session is None else str(spec.session),
        "door": None if spec.door is None else str(spec.door),
        "network": spec.network.value,
        "ttl": spec.ttl,
        "ttl_action": spec.ttl_action,
        "metadata": dict(spec.metadata),
    }
