"""Combine a provider, a process manager and an agent into a few calls.

Nothing is stored: the provider has the machines, the process manager the processes. While it exists, an orchestrator
only remembers the secrets to mask, the temporary directories to remove with their machines, and the machines with a
time limit."""

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
from hiveyard.library.conversation import Conversation, open_conversation
from hiveyard.library.doors import MachineDoors
from hiveyard.library.errors import Step, operating, preparing, removing, starting
from hiveyard.library.name_claims import NameClaims
from hiveyard.library.prepared import Defaults, Prepared, encode_prompt, prepare_turn
from hiveyard.library.secret_masks import SecretMasks
from hiveyard.library.snapshot import Snapshot
from hiveyard.library.teardown import Teardown

T = TypeVar("T")


class Orchestrator:
    """Boots machines, installs credentials and runs an agent in them.

    `on_event` receives every event; without it, events go to the log `hiveyard.library`. `installer` installs the
    credentials. With `doors` (`hiveyard.door.local_doors.LocalDoors`) each machine has a connection to models, and a
    placeholder instead of a key. `defaults` apply to all turns. Use it with `async with`: it then serves the doors, and
    ends machines whose `ttl_seconds` are over if the provider does not. Leaving the block closes the doors and the
    provider's resources in this process; it ends no machine. Entering raises ProviderError if an Openable provider
    fails.

    Errors are OrchestrationErrors: `context` has the machine, the process and the operation, `__cause__` is the cause,
    and installed secrets are masked. BadInput is raised before anything is made."""

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
        self._emit = on_event
        self._installer = installer
        self._clock = clock or SystemClock()
        self._open = AsyncExitStack()
        self._masks = SecretMasks()
        self._doors = MachineDoors(doors, agent.name, on_event, self._masks)
        self._claims = NameClaims(provider)
        self._machine_boot = MachineBoot(provider, agent, self._doors, on_event, self._clock)
        self._teardown = Teardown(provider, self._machine_boot, self._masks, on_event, self._clock)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            if isinstance(self.provider, Openable):
                await opening.enter_async_context(self.provider.opened())
            await opening.enter_async_context(self._doors)
            await opening.enter_async_context(self._teardown.lifetimes)
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
        """Boot a new machine, install credential profiles in order, and write `machine_info` to its `~/.machine.json`.

        The machine is made from an image, or from a `snapshot` of a machine of that image and shape. `machine_info`
        defaults to the spec's metadata; `createdAt` is added. `machine_info_mode` is 0640 or 0600. `real` names the
        profiles that may contain a real secret. `placeholder` is the key that the machine's door accepts; it defaults
        to that of the snapshot or a new one.

        A local machine whose spec has no `session` gets a directory that is removed with it. A `session` of the spec
        must be empty or absent if a snapshot contains the files. The name of a snapshot is sufficient for a cloud, or
        if the spec's `session` is the state of that time. If the call fails, no machine is left over unless
        `keep_on_error` is set; if it is cancelled, never. Raises NotPrepared."""
        origin = Snapshot(name=snapshot) if isinstance(snapshot, str) else snapshot
        spec = validation.machine_spec(self.provider, source, origin, ttl_seconds, ttl_action)
        info = spec.metadata if machine_info is None else machine_info
        validation.check_info(info, machine_info_mode)
        placeholder = placeholder or (origin.placeholder if origin is not None else None)
        placeholder = self._doors.placeholder(self.provider, spec, placeholder)
        seconds = None if self.provider.capabilities.remote else spec.ttl
        if seconds is not None:
            self._teardown.lifetimes.check()
        async with self._claims.new(name) as name, self._machine_boot.attempt(name):
            validation.check_profiles(name, credential_profiles, real)
            self._masks.add(name, (secret for profile in credential_profiles for secret in profile.masked()))
            self._masks.add(name, [placeholder] if placeholder is not None else ())
            self._masks.add(name, origin.secrets if origin is not None else ())

            def should_keep(error: BaseException) -> bool:
                return keep_on_error and isinstance(error, Exception)

            async with self._teardown.terminate_on_failure(events.PreparationFailed, name, should_keep):
                machine = await self._boot(name, spec, placeholder, origin)
                if seconds is not None:  # already here, because a machine that fails below may be kept
                    machine = self._teardown.lifetimes.start(machine, seconds, spec.ttl_action)
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
        """Make `count` machines that continue from the current state of this one, which is paused for a moment.

        They have the same memory and processes, a copy of the session directory, and their own names and doors; the
        doors accept the same placeholder. If one cannot be made or the call is cancelled, none is left over. Raises
        BadInput if machines cannot be forked, NotPrepared."""
        validation.check_fork(self.provider, count)
        if ready.placeholder is not None:
            self._doors.placeholder(self.provider, ready.spec, ready.placeholder)
        if ready.spec.ttl is not None and not self.provider.capabilities.remote:
            self._teardown.lifetimes.check()
        parent = ready.machine.name
        names = [f"m-{new_id()}" for _ in range(count)]
        for name in names:
            self._masks.add(name, self._masks.secrets(parent))
        fork = self._fork_directly if isinstance(self.provider, Forks) else self._fork_by_snapshot
        machines = await fork(ready, names)
        return [replace(ready, machine=machines[name], spec=_forked(ready.spec)) for name in names]

    async def _fork_directly(self, ready: Prepared, names: Sequence[str]) -> Mapping[str, Machine]:
        parent = ready.machine.name
        async with self._teardown.terminate_all_on_failure(names):
            forking = self._machine_boot.fork(parent, names, ready.spec)
            return await preparing("fork", parent).run(forking, self._mask(parent))

    async def _fork_by_snapshot(self, ready: Prepared, names: Sequence[str]) -> Mapping[str, Machine]:
        parent, requested = ready.machine.name, Snapshot(name=f"fork-{new_id()}")
        machines: dict[str, Machine] = {}
        try:
            snapshotting = self._machine_boot.snapshot(parent, ready.spec, requested, temporary=True)
            origin = await preparing("fork", parent).run(snapshotting, self._mask(parent))
            async with self._teardown.terminate_all_on_failure(names), together() as group:
                for name in names:
                    group.start_soon(self._fork, ready, name, origin, machines)
        finally:
            with anyio.CancelScope(shield=True):
                await self._remove_snapshot(parent, requested, "fork")
        return machines

    async def _fork(self, ready: Prepared, name: str, origin: Snapshot, into: dict[str, Machine]) -> None:
        machine = await self._boot(name, _forked(ready.spec), ready.placeholder, origin)
        if ready.spec.ttl is not None and not self.provider.capabilities.remote:
            machine = self._teardown.lifetimes.start(machine, ready.spec.ttl, ready.spec.ttl_action)
        into[name] = machine

    async def _remove_snapshot(self, parent: str, snapshot: Snapshot, operation: str) -> None:
        """Remove a snapshot, and only report a failure, so that the caller's machines are kept."""
        try:
            await self._machine_boot.remove_snapshot(snapshot)
        except HiveyardError as error:
            self._teardown.report_failure(parent, operation, error)

    async def snapshot(self, ready: Prepared, *, session: Path | None = None) -> Snapshot:
        """Take a snapshot of a machine for `boot_and_prepare(snapshot=...)`. The machine is paused for a moment.

        It contains memory, processes, disk and session directory, and outlives the machine and the orchestrator.
        `session` is the path for the copy of the session directory. It must not exist; the default is a new temporary
        directory. A cloud needs none. If the call fails or is cancelled, nothing is left over. Raises BadInput if the
        provider cannot save memory, OperationFailed."""
        validation.check_snapshot(self.provider, session)
        machine = ready.machine.name
        requested = Snapshot(name=f"snapshot-{new_id()}", session=session)
        try:
            snapshotting = self._machine_boot.snapshot(machine, ready.spec, requested)
            taken = await operating("snapshot", machine).run(snapshotting, self._mask(machine))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._remove_snapshot(machine, requested, "snapshot")
            raise
        self._emit(events.SnapshotTaken(machine=machine, snapshot=taken.name))
        return replace(taken, placeholder=ready.placeholder, secrets=self._masks.secrets(machine))

    async def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove a snapshot with its copy of the session directory. An absent one is a success.

        Machines that were booted from it keep running. Raises BadInput if the provider has no snapshots,
        OperationFailed."""
        validation.check_snapshot(self.provider)
        await removing(snapshot.name).run(self._machine_boot.remove_snapshot(snapshot), Mask(snapshot.secrets))

    async def terminate(self, machine: Machine) -> None:
        """Remove a machine and everything that was made for it. An absent one is a success. Raises OperationFailed."""
        await operating("terminate", machine.name).run(self._teardown.terminate(machine.name), self._mask(machine.name))

    # --- sessions -----------------------------------------------------------------------------------------------

    async def start_session(
        self, machine: Machine, turn: Turn, *, prompt: str | None = None, keep_on_error: bool = False
    ) -> ProcessInfo:
        """Start the agent's process for `turn`, or return the existing process of that name.

        The turn's directories are made. `prompt` is written to the turn's file; without it, the file must exist. If the
        call fails or is cancelled, the machine and everything in it are removed, unless `keep_on_error` is set or the
        process may have existed before. Raises SessionNotStarted; BadInput for a turn that the agent cannot run;
        nothing is done then, and the machine stays."""
        spec = self.agent.process(turn)
        data = None if prompt is None else encode_prompt(prompt)
        return await self._start(machine, turn, spec, data, keep_on_error)

    @asynccontextmanager
    async def converse(
        self, machine: Machine, turn: Turn, *, offset: int = 0, keep_on_error: bool = False
    ) -> AsyncIterator[Conversation]:
        """Start the agent's process like `start_session`, or find it, and open a conversation with it.

        Leaving the block ends nothing. `offset` is that of an earlier conversation with the process; if it is set, no
        failure removes the machine. Raises the errors of `start_session`, and BadInput for an agent that takes one
        prompt only. A conversation raises errors of its own."""
        agent = self.agent
        if not isinstance(agent, HasDriver):
            raise BadInput(f"the agent {agent.name} takes one prompt only", hint="call start_session for each prompt")
        driver, spec = agent.driver(turn), agent.live_process(turn)
        await self._start(machine, turn, spec, None, keep_on_error or offset > 0)
        mask = self._mask(machine.name)
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(self.provider.guest(machine.name))
            guest = await self._start_step(machine.name, turn.name).run(opening, mask)
            conversation = open_conversation(guest, self.manager, spec, driver, offset=offset, mask=mask)
            yield await stack.enter_async_context(conversation)

    async def processes(self, machine: Machine) -> list[ProcessInfo]:
        """Return all processes of the process manager there, running or ended. Raises OperationFailed, like the calls
        below."""
        return await self._in_guest(machine, "processes", "", self.manager.list)

    async def logs(self, machine: Machine, process: str, *, stream: str = "stdout", lines: int = 100) -> bytes:
        """Return the last lines of an output (`stdout` or `stderr`) as the process wrote them, not masked."""
        return await self._in_guest(
            machine, "logs", process, lambda guest: self.manager.logs(guest, process, stream=stream, lines=lines)
        )

    async def follow(
        self, machine: Machine, process: str, *, stream: str = "stdout", offset: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """Yield an output from `offset`, then live, until the process has ended. Use `contextlib.aclosing` to stop
        earlier."""
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
        """Interrupt a process, and kill it after `grace` seconds. An ended process is a success."""
        info = await self._in_guest(
            machine, "stop", process, lambda guest: self.manager.stop(guest, process, grace=grace)
        )
        self._emit(events.ProcessStopped(machine=machine.name, process=info.name, exit_code=info.exit_code))
        return info

    # --- steps --------------------------------------------------------------------------------------------------

    async def _start(
        self, machine: Machine, turn: Turn, spec: ProcessSpec, prompt: bytes | None, keep: bool
    ) -> ProcessInfo:
        """Start a process. The caller made `spec` before, so that an invalid turn does not remove the machine."""
        self._masks.add(machine.name, [Secret(turn.placeholder)])
        new = False

        async def start() -> ProcessInfo:
            nonlocal new
            async with self.provider.guest(machine.name) as guest:
                new = not keep and await self._is_new(guest, spec.name)
                await prepare_turn(guest, turn, prompt)
                return await self.manager.start(guest, spec)

        failed = partial(events.SessionFailed, process=turn.name)

        def should_keep(error: BaseException) -> bool:
            return not new or isinstance(error.__cause__, BadInput)  # raised before anything was started

        async with self._teardown.terminate_on_failure(failed, machine.name, should_keep):
            info = await self._start_step(machine.name, turn.name).run(start(), self._mask(machine.name))
        started = events.SessionStarted(
            machine=machine.name, process=info.name, agent=self.agent.name, manager=self.manager.name, pid=info.pid
        )
        self._emit(started)
        return info

    async def _is_new(self, guest: Guest, process: str) -> bool:
        """Return whether it is certain that the process does not exist."""
        try:
            await self.manager.get(guest, process)
        except HiveyardError as error:
            return isinstance(error, NoSuchProcess)
        return False

    async def _boot(self, name: str, spec: MachineSpec, placeholder: Secret | None, origin: Snapshot | None) -> Machine:
        booting = self._machine_boot.boot(name, spec, placeholder, origin)
        return await preparing("boot", name).run(booting, self._mask(name))

    async def _install(
        self, name: str, profiles: Sequence[CredentialProfile], real: Collection[str]
    ) -> Sequence[Installed]:
        def announce(line: str) -> None:
            self._emit(events.RealSecretAnnounced(machine=name, line=line))

        async def install() -> list[Installed]:
            async with self.provider.guest(name) as guest:
                return await (self._installer or DefaultCredentialsInstaller(announce)).install(
                    guest, profiles, real=real
                )

        if not profiles:
            return ()
        installed = await preparing("install_credentials", name).run(install(), self._mask(name))
        for profile in installed:
            event = events.CredentialsInstalled(
                machine=name, profile=profile.profile, paths=profile.paths, real=profile.real, checked=profile.checked
            )
            self._emit(event)
        return installed

    async def _write_info(self, machine: Machine, info: Mapping[str, object], mode: int) -> None:
        data = validation.info_file(info, validation.creation_time(machine.created_at, self._clock.now()))

        async def write() -> None:
            async with self.provider.guest(machine.name) as guest:
                await guest.write_atomic(validation.INFO_PATH, data, mode=mode)

        await preparing("write_machine_info", machine.name).run(write(), self._mask(machine.name))
        self._emit(events.MachineInfoWritten(machine=machine.name, path=validation.INFO_PATH))

    async def _in_guest(
        self, machine: Machine, operation: str, process: str, act: Callable[[Guest], Awaitable[T]]
    ) -> T:
        async def call() -> T:
            async with self.provider.guest(machine.name) as guest:
                return await act(guest)

        return await operating(operation, machine.name, process).run(call(), self._mask(machine.name))

    def _mask(self, name: str) -> Mask:
        return self._masks.mask(name)

    def _start_step(self, machine: str, process: str) -> Step:
        return starting(machine, process, programs=f"{self.manager.name} and the agent {self.agent.name}")


def _forked(spec: MachineSpec) -> MachineSpec:
    """Return the spec of a child. Its session directory is a copy, which is removed with it."""
    return replace(spec, session=None)
