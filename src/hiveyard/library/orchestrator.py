"""A provider, a process manager and an agent, put together to a handful of calls.

Nothing is kept: machines are the provider's, processes the manager's. An orchestrator only remembers, for as long as
it lives, which secrets it must not show, which scratch directories are to go with their machines, and whose time ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import anyio

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.credentials import CredentialProfile, CredentialsInstaller, Installed
from hiveyard.core.doors import Doors
from hiveyard.core.drivers import HasDriver
from hiveyard.core.errors import BadInput, HiveyardError, NoSuchProcess, OrchestrationError
from hiveyard.core.machines import Image, Machine, MachineSpec, TtlAction
from hiveyard.core.ports import Agent, Forks, Guest, Openable, ProcessManager, Provider, Turn
from hiveyard.credentials import DefaultCredentialsInstaller
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.group import together
from hiveyard.kit.mask import Mask
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret
from hiveyard.library import events, validation
from hiveyard.library.boot import MachineBoot
from hiveyard.library.conversation import Conversation, conversing
from hiveyard.library.doors import MachineDoors
from hiveyard.library.errors import Step, operating, preparing, removing, starting
from hiveyard.library.name_claims import NameClaims
from hiveyard.library.prepared import Defaults, Prepared, encoded, make_room
from hiveyard.library.secret_masks import SecretMasks
from hiveyard.library.snapshot import Snapshot
from hiveyard.library.teardown import Teardown

T = TypeVar("T")


class Orchestrator:
    """Boots machines, installs credentials and runs an agent in them.

    `on_event` receives every event; without it, events go to the log `hiveyard.library`. `installer` installs the
    credentials. With `doors` (`hiveyard.door.local_doors.LocalDoors`) each machine has a way to models and a
    placeholder instead of a key. `defaults` apply to all turns. Use it as `async with`: it serves the doors and
    ends machines whose `ttl_seconds` are over, where the provider does not. Leaving the block closes the doors and
    what the provider has open in this process; it ends no machine. Opening raises ProviderError where the provider
    is Openable and fails.

    Errors are OrchestrationErrors: `context` has the machine, the process and the operation, `__cause__` why, and no
    secret that was installed is in them. BadInput comes before anything is made.
    """

    def __init__(
        self,
        provider: Provider,
        manager: ProcessManager,
        agent: Agent,
        *,
        on_event: events.Listener = events.log,
        installer: CredentialsInstaller | None = None,
        doors: Doors | None = None,
        clock: Clock | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        self.provider = provider
        self.manager = manager
        self.agent = agent
        self._defaults = defaults or Defaults()
        self._tell = on_event
        self._installer = installer
        self._clock = clock or SystemClock()
        self._open = AsyncExitStack()
        self._masks = SecretMasks()
        self._doorways = MachineDoors(doors, agent.name, on_event, self._masks)
        self._claims = NameClaims(provider)
        self._booting = MachineBoot(provider, agent, self._doorways, on_event, self._clock)
        self._ending = Teardown(provider, self._booting, self._masks, on_event, self._clock)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            if isinstance(self.provider, Openable):
                await opening.enter_async_context(self.provider.opened())
            await opening.enter_async_context(self._doorways)
            await opening.enter_async_context(self._ending.lifetimes)
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._open.aclose()

    # --- machines -----------------------------------------------------------------------------------------------

    async def boot_and_prepare(
        self,
        source: Image | MachineSpec,
        *,
        snapshot: Snapshot | str | None = None,
        name: str | None = None,
        ttl_seconds: int | None = None,
        ttl_action: TtlAction = "terminate",
        credential_profiles: Sequence[CredentialProfile] = (),
        real: Collection[str] = (),
        placeholder: Secret | None = None,
        machine_info: Mapping[str, object] | None = None,
        machine_info_mode: int = 0o640,
        keep_on_error: bool = False,
    ) -> Prepared:
        """A new machine from an image (or from a `snapshot` of a machine of that image and shape), with the profiles
        installed in their order and `machine_info` in its `~/.machine.json`, together with `createdAt`.

        `machine_info` is the spec's metadata unless given; `machine_info_mode` is 0640 or 0600. `real` names the
        profiles that may bring a real secret. `placeholder` is what the machine's door takes for a key, that of the
        snapshot or a new one unless given. A local machine whose spec has no `session` gets a directory that goes with
        it; one that the spec has is empty or absent where a snapshot brings its files. The bare name of a snapshot does
        for a cloud, or where the spec's `session` is what it was then. When this fails no machine is left, except with
        `keep_on_error`; cancelled, none is left in any case. Raises NotPrepared."""
        origin = Snapshot(name=snapshot) if isinstance(snapshot, str) else snapshot
        spec = validation.machine_spec(self.provider, source, origin, ttl_seconds, ttl_action)
        info = spec.metadata if machine_info is None else machine_info
        validation.check_info(info, machine_info_mode)
        placeholder = placeholder or (origin.placeholder if origin is not None else None)
        placeholder = self._doorways.placeholder(self.provider, spec, placeholder)
        seconds = None if self.provider.capabilities.remote else spec.ttl
        if seconds is not None:
            self._ending.lifetimes.check()
        async with self._claims.new(name) as name, self._booting.attempt(name):
            validation.check_profiles(name, credential_profiles, real)
            self._masks.add(name, (secret for profile in credential_profiles for secret in profile.masked()))
            self._masks.add(name, [placeholder] if placeholder is not None else ())
            self._masks.add(name, origin.secrets if origin is not None else ())

            def kept(error: BaseException) -> bool:
                return keep_on_error and isinstance(error, Exception)

            async with self._ending.on_failure(events.PreparationFailed, name, kept):
                machine = await self._boot(name, spec, placeholder, origin)
                if seconds is not None:  # now, for one that fails in what follows may be kept
                    machine = self._ending.lifetimes.begin(machine, seconds, spec.ttl_action)
                installed = await self._install(name, credential_profiles, real)
                await self._write_info(machine, info, machine_info_mode)
        return Prepared(
            machine=machine,
            spec=spec,
            capabilities=self.provider.capabilities,
            installed=tuple(installed),
            placeholder=placeholder,
            agent=self.agent.name,
            defaults=self._defaults,
        )

    async def fork(self, ready: Prepared, count: int = 1) -> list[Prepared]:
        """`count` machines that go on where this one stands, which stands still for a moment: same memory and
        processes, a copy of the session directory, names of their own, and doors of their own that take the same
        placeholder. When one cannot be made, or on cancellation, none is left.

        Raises BadInput where machines cannot be forked, NotPrepared."""
        validation.check_fork(self.provider, count)
        if ready.placeholder is not None:
            self._doorways.placeholder(self.provider, ready.spec, ready.placeholder)
        if ready.spec.ttl is not None and not self.provider.capabilities.remote:
            self._ending.lifetimes.check()
        parent = ready.machine.name
        names = [f"m-{new_id()}" for _ in range(count)]
        for name in names:
            self._masks.add(name, self._masks.of(parent))
        fork = self._fork_at_once if isinstance(self.provider, Forks) else self._fork_by_snapshot
        machines = await fork(ready, names)
        return [replace(ready, machine=machines[name], spec=_forked(ready.spec)) for name in names]

    async def _fork_at_once(self, ready: Prepared, names: Sequence[str]) -> Mapping[str, Machine]:
        parent = ready.machine.name
        async with self._ending.all_on_failure(names):
            forking = self._booting.fork(parent, names, ready.spec)
            return await preparing("fork", parent).of(forking, self._mask(parent))

    async def _fork_by_snapshot(self, ready: Prepared, names: Sequence[str]) -> Mapping[str, Machine]:
        parent, asked = ready.machine.name, Snapshot(name=f"fork-{new_id()}")
        machines: dict[str, Machine] = {}
        try:
            keeping = self._booting.keep(parent, ready.spec, asked, temporary=True)
            origin = await preparing("fork", parent).of(keeping, self._mask(parent))
            async with self._ending.all_on_failure(names), together() as group:
                for name in names:
                    group.start_soon(self._fork, ready, name, origin, machines)
        finally:
            with anyio.CancelScope(shield=True):
                await self._forget(parent, asked, "fork")
        return machines

    async def _fork(self, ready: Prepared, name: str, origin: Snapshot, into: dict[str, Machine]) -> None:
        machine = await self._boot(name, _forked(ready.spec), ready.placeholder, origin)
        if ready.spec.ttl is not None and not self.provider.capabilities.remote:
            machine = self._ending.lifetimes.begin(machine, ready.spec.ttl, ready.spec.ttl_action)
        into[name] = machine

    async def _forget(self, parent: str, snapshot: Snapshot, operation: str) -> None:
        """What is left of it is told of, and takes no machine away from whoever asked for it."""
        try:
            await self._booting.forget(snapshot)
        except HiveyardError as error:
            self._ending.failed_alone(parent, operation, error)

    async def snapshot(self, ready: Prepared, *, session: Path | None = None) -> Snapshot:
        """The machine as it stands, for `boot_and_prepare(snapshot=...)`; it goes on after a moment. Memory, processes,
        disk and session directory belong together in it, and it outlives the machine and the orchestrator.

        `session` is where the copy of the session directory is to be, absent as yet; a new temporary directory unless
        given, and none with a cloud. When this fails or is cancelled nothing is left. Raises BadInput where the
        provider keeps no memory, OperationFailed."""
        validation.check_snapshot(self.provider, session)
        machine = ready.machine.name
        asked = Snapshot(name=f"snapshot-{new_id()}", session=session)
        try:
            keeping = self._booting.keep(machine, ready.spec, asked)
            kept = await operating("snapshot", machine).of(keeping, self._mask(machine))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._forget(machine, asked, "snapshot")
            raise
        self._tell(events.SnapshotTaken(machine=machine, snapshot=kept.name))
        return replace(kept, placeholder=ready.placeholder, secrets=self._masks.of(machine))

    async def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove it, with its copy of the session directory; absent is a success. Machines that go on from it live on.
        Raises BadInput where the provider keeps none, OperationFailed."""
        validation.check_snapshot(self.provider)
        await removing(snapshot.name).of(self._booting.forget(snapshot), Mask(snapshot.secrets))

    async def terminate(self, machine: Machine) -> None:
        """Remove it and what was made for it; absent is a success. Raises OperationFailed."""
        await operating("terminate", machine.name).of(self._ending.terminate(machine.name), self._mask(machine.name))

    # --- sessions -----------------------------------------------------------------------------------------------

    async def start_session(
        self, machine: Machine, turn: Turn, *, prompt: str | None = None, keep_on_error: bool = False
    ) -> ProcessInfo:
        """Start the agent's process for `turn`, or find the one of that name that was started before.

        The turn's directories are made, and `prompt` is written to its file, which has to be there without one. When
        this fails or is cancelled the machine is removed, with all that runs in it, unless `keep_on_error`, or unless
        the process may have been there before: then what fails takes nothing away. Raises SessionNotStarted; BadInput
        for a turn that the agent cannot do, when nothing was done and the machine stays."""
        spec = self.agent.process(turn)
        data = None if prompt is None else encoded(prompt)
        return await self._start(machine, turn, spec, data, keep_on_error)

    @asynccontextmanager
    async def converse(
        self, machine: Machine, turn: Turn, *, offset: int = 0, keep_on_error: bool = False
    ) -> AsyncIterator[Conversation]:
        """A conversation with the agent, whose process is started as by `start_session`, or found; leaving the block
        ends nothing. `offset` is the one of a conversation with that process that was left; with one, no failure
        removes the machine. Raises as that, and BadInput for an agent that takes one prompt only; a conversation raises
        errors of its own."""
        agent = self.agent
        if not isinstance(agent, HasDriver):
            raise BadInput(f"the agent {agent.name} takes one prompt only", hint="start_session, for each prompt one")
        driver, spec = agent.driver(turn), agent.live_process(turn)
        await self._start(machine, turn, spec, None, keep_on_error or offset > 0)
        mask = self._mask(machine.name)
        async with AsyncExitStack() as inside:
            opening = inside.enter_async_context(self.provider.guest(machine.name))
            guest = await self._starting(machine.name, turn.name).of(opening, mask)
            talking = conversing(guest, self.manager, spec, driver, offset=offset, mask=mask)
            yield await inside.enter_async_context(talking)

    async def processes(self, machine: Machine) -> list[ProcessInfo]:
        """All that the process manager keeps there, running or ended. Raises OperationFailed, as what follows does."""
        return await self._inside(machine, "processes", "", self.manager.list)

    async def logs(self, machine: Machine, process: str, *, stream: str = "stdout", lines: int = 100) -> bytes:
        """The last lines of an output (`stdout` or `stderr`), as the process wrote them: nothing in it is masked."""
        return await self._inside(
            machine, "logs", process, lambda guest: self.manager.logs(guest, process, stream=stream, lines=lines)
        )

    async def follow(
        self, machine: Machine, process: str, *, stream: str = "stdout", offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """An output from `offset`, then live, until the process has ended. Use `contextlib.aclosing` to stop before."""
        failure: OrchestrationError | None = None
        try:
            async with self.provider.guest(machine.name) as guest:
                pieces = self.manager.follow(guest, process, stream=stream, offset=offset)
                async with aclosing(pieces):  # type: ignore[type-var]  # the port promises one that can be closed
                    async for piece in pieces:
                        yield piece
        except HiveyardError as error:
            failure = operating("follow", machine.name, process).failure(error, self._mask(machine.name))
        if failure is not None:
            raise failure

    async def stop(self, machine: Machine, process: str, *, grace: float = 5.0) -> ProcessInfo:
        """Interrupt a process, and kill it after `grace` seconds. Ended already is a success."""
        info = await self._inside(
            machine, "stop", process, lambda guest: self.manager.stop(guest, process, grace=grace)
        )
        self._tell(events.ProcessStopped(machine=machine.name, process=info.name, exit_code=info.exit_code))
        return info

    # --- the steps ----------------------------------------------------------------------------------------------

    async def _start(
        self, machine: Machine, turn: Turn, spec: ProcessSpec, prompt: bytes | None, keep: bool
    ) -> ProcessInfo:
        """`spec` was made of the turn before, out of here: a turn that cannot be costs no machine."""
        self._masks.add(machine.name, [Secret(turn.placeholder)])
        new = False

        async def start() -> ProcessInfo:
            nonlocal new
            async with self.provider.guest(machine.name) as guest:
                new = not keep and await self._is_new(guest, spec.name)
                await make_room(guest, turn, prompt)
                return await self.manager.start(guest, spec)

        failed = partial(events.SessionFailed, process=turn.name)

        def kept(error: BaseException) -> bool:
            return not new or isinstance(error.__cause__, BadInput)  # which nothing was begun for

        async with self._ending.on_failure(failed, machine.name, kept):
            info = await self._starting(machine.name, turn.name).of(start(), self._mask(machine.name))
        started = events.SessionStarted(
            machine=machine.name, process=info.name, agent=self.agent.name, manager=self.manager.name, pid=info.pid
        )
        self._tell(started)
        return info

    async def _is_new(self, guest: Guest, process: str) -> bool:
        """Whether it is certain that there is no such process yet."""
        try:
            await self.manager.get(guest, process)
        except HiveyardError as error:
            return isinstance(error, NoSuchProcess)
        return False

    async def _boot(self, name: str, spec: MachineSpec, placeholder: Secret | None, origin: Snapshot | None) -> Machine:
        booting = self._booting.boot(name, spec, placeholder, origin)
        return await preparing("boot", name).of(booting, self._mask(name))

    async def _install(
        self, name: str, profiles: Sequence[CredentialProfile], real: Collection[str]
    ) -> Sequence[Installed]:
        def announce(line: str) -> None:
            self._tell(events.RealSecretAnnounced(machine=name, line=line))

        async def install() -> list[Installed]:
            async with self.provider.guest(name) as guest:
                return await (self._installer or DefaultCredentialsInstaller(announce)).install(
                    guest, profiles, real=real
                )

        if not profiles:
            return ()
        installed = await preparing("install_credentials", name).of(install(), self._mask(name))
        for one in installed:
            told = events.CredentialsInstalled(
                machine=name, profile=one.profile, paths=one.paths, real=one.real, checked=one.checked
            )
            self._tell(told)
        return installed

    async def _write_info(self, machine: Machine, info: Mapping[str, object], mode: int) -> None:
        data = validation.info_file(info, validation.made_at(machine.created_at, self._clock.now()))

        async def write() -> None:
            async with self.provider.guest(machine.name) as guest:
                await guest.write_atomic(validation.INFO_PATH, data, mode=mode)

        await preparing("write_machine_info", machine.name).of(write(), self._mask(machine.name))
        self._tell(events.MachineInfoWritten(machine=machine.name, path=validation.INFO_PATH))

    async def _inside(self, machine: Machine, operation: str, process: str, act: Callable[[Guest], Awaitable[T]]) -> T:
        async def inside() -> T:
            async with self.provider.guest(machine.name) as guest:
                return await act(guest)

        return await operating(operation, machine.name, process).of(inside(), self._mask(machine.name))

    def _mask(self, name: str) -> Mask:
        return self._masks.mask(name)

    def _starting(self, machine: str, process: str) -> Step:
        return starting(machine, process, programs=f"{self.manager.name} and the agent {self.agent.name}")


def _forked(spec: MachineSpec) -> MachineSpec:
    """That of a child: its session directory is a copy, which goes with it."""
    return replace(spec, session=None)
