"""Run machines of Linux namespaces with bubblewrap: tier `namespace`, no daemon, no root, a few milliseconds each.

Each machine has its own user, pid, mount, ipc, uts and network namespaces. The root file system is read-only, /tmp and
/run are in memory, /home/agent is new, and only /session outlives the machine. A machine has no capabilities, gets no
new privileges, cannot create user namespaces, and its system calls are filtered (shared/seccomp.py).

File ownership: if the daemon is not root, the machine's user 1000 is the daemon's user on the host. If it is root,
machines run as the user `uid` of the settings, and id-mapped mounts make the files in /session belong to root on disk.
So the daemon can always read and delete them, and a machine is never root. That needs Linux 5.12 and a file system that
supports it (ext4, xfs, btrfs, f2fs; tmpfs from 6.3 on).

The kernel is shared with the host: a kernel bug that helps a local user helps a machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sys
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from hiveyard.core.commands import Command
from hiveyard.core.context import of_machines
from hiveyard.core.errors import (
    BadInput,
    BootFailed,
    BootTimeout,
    HiveyardError,
    MachineNotReady,
    NoSpace,
    NoSuchMachine,
    ProviderError,
    ProviderUnavailable,
)
from hiveyard.core.machines import (
    HOST,
    Capabilities,
    Image,
    Machine,
    MachineSpec,
    MachineStatus,
    Network,
    Readiness,
    Report,
    Shape,
    StoredItem,
    Tier,
    check_machine_name,
    quiet,
)
from hiveyard.core.ports import Guest
from hiveyard.kit import process
from hiveyard.kit.trees import remove_tree
from hiveyard.machines.bubblewrap import cgroups, layout, members, open_network, record
from hiveyard.machines.bubblewrap.entrance import Entrance
from hiveyard.machines.bubblewrap.pause import MachinePause
from hiveyard.machines.bubblewrap.record import MachineDirectory, Manifest
from hiveyard.machines.bubblewrap.rootfs import Roots
from hiveyard.machines.bubblewrap.settings import BubblewrapSettings
from hiveyard.machines.shared import seccomp
from hiveyard.machines.shared.namespaces import what_to_allow
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PROGRAMS = ("bwrap", "nsenter", "setpriv", "tar")
_FULL = (f"[Errno {errno.ENOSPC}]", f"[Errno {errno.EDQUOT}]")  # shutil.Error has the errors of a tree only as text
_TRIAL = ".trial"
_TRIAL_LIFETIME = 60  # seconds after which a trial machine ends, in case its daemon is killed
_KILL_TIMEOUT = 30.0  # seconds until a process that cannot be killed is an error
_INSTALL = "sudo apt-get install bubblewrap util-linux tar"


@of_machines
class BubblewrapProvider:
    """A provider. `state` holds a directory for each machine, `cache` the unpacked images. Only this provider may use
    them."""

    name = "bubblewrap"
    tier = Tier.NAMESPACE
    capabilities = Capabilities()

    def __init__(self, state: Path, cache: Path, settings: BubblewrapSettings | None = None) -> None:
        self._state = state
        self._settings = settings or BubblewrapSettings()
        self._roots = Roots(cache)
        self._cgroups = cgroups.Cgroups()
        self._uid = self._settings.uid if os.geteuid() == 0 else None
        self._booting: set[str] = set()
        # One change of a machine at a time. No program may enter it while its processes are being stopped.
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()
        self._gates: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()
        self._discovered = False
        self._lifetime = ""
        if self._uid == 0:
            raise BadInput("machines.bubblewrap.uid is 0: a machine must not be root")

    # --- readiness ----------------------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            return Readiness(ok=False, detail=f"not installed: {', '.join(missing)}", fix=_INSTALL)
        version = (await process.run(["bwrap", "--version"])).stdout.decode().strip()
        try:
            await self._try()
        except HiveyardError as error:
            fix = await anyio.to_thread.run_sync(what_to_allow, "choose --provider docker or qemu")
            return Readiness(ok=False, detail=f"{version}: {error.message}", fix=fix)
        return Readiness(ok=True, detail=f"{version}; {self._limits()}")

    async def _try(self) -> None:
        """Boot a trial machine in a directory of its own, run a command in it, and terminate it."""
        trial = BubblewrapProvider(self._state / _TRIAL, Path("/nonexistent"), self._settings)
        trial._lifetime = str(_TRIAL_LIFETIME)
        for old in await trial.list():
            if old.created_at < time.time() - _TRIAL_LIFETIME:
                await trial.terminate(old.name)
        name = f"trial-{secrets.token_hex(4)}"
        try:
            await trial.boot(name, MachineSpec(image=HOST))
            async with trial.guest(name) as guest:
                await guest.run(Command(argv=("true",)), timeout=self._settings.boot_timeout)
        finally:
            with anyio.CancelScope(shield=True):
                await trial.terminate(name)
                with contextlib.suppress(OSError):
                    (self._state / _TRIAL).rmdir()

    def _limits(self) -> str:
        """Describe the limits of a machine."""
        self._discover()
        limited = self._cgroups.controllers
        both = (
            "memory and processor limited"
            if {"memory", "cpu"} <= set(limited)
            else ("memory limited, processor not" if "memory" in limited else "memory not limited (no writable cgroup)")
        )
        who = f"machines run as user {self._uid}" if self._uid is not None else "machines run as this user"
        return f"{who}, processes limited, {both}, disk not limited"

    def _discover(self) -> None:
        if not self._discovered:
            self._cgroups.discover()
            self._discovered = True

    # --- images -------------------------------------------------------------------------------------------------

    async def prepare(self, image: Image, shape: Shape, report: Report = quiet) -> None:
        if image != HOST:
            await self._roots.unpack(image, report)

    async def release_image(self, image_id: str) -> None:
        await self._roots.release(image_id)

    async def stored_items(self) -> list[StoredItem]:
        machines = [
            StoredItem(kind="machine", name=name, place=self._state / name) for name in sorted(await self.names())
        ]
        return [*self._roots.stored_items(), *machines]

    async def discard(self, holding: StoredItem) -> None:
        assert holding.kind == "left" and holding.place is not None
        await anyio.to_thread.run_sync(remove_tree, holding.place)

    # --- machines -----------------------------------------------------------------------------------------------

    async def boot(self, name: str, spec: MachineSpec) -> Machine:
        check_machine_name(name)
        async with _lock_of(self._locks, name):
            if self._directory(name).init() is not None:
                return await self.get(name)
            await self._destroy(name)
            root = self._root_options(spec.image)
            self._booting.add(name)
            try:
                await self._start(name, spec, root)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._destroy(name)
                raise
            finally:
                self._booting.discard(name)
        return await self.get(name)

    async def _start(self, name: str, spec: MachineSpec, root: list[str]) -> None:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise ProviderUnavailable("bwrap is not installed", hint=_INSTALL)
        directory = self._directory(name)
        ident = f"hiveyard-{secrets.token_hex(8)}"
        network = resolvers = None
        if spec.network is Network.OPEN:
            network, resolvers = {"program": open_network.program(), "ident": ident}, open_network.resolv_conf()
        try:
            manifest = self._prepare_directory(directory, ident, spec)
            if resolvers is not None:
                directory.etc.mkdir(exist_ok=True)
                (directory.etc / "resolv.conf").write_text(resolvers)
        except OSError as error:
            raise _disk_error(error, directory.path) from error
        shown = self._settings.host_paths if spec.image == HOST else ()
        argv = layout.command_line(bwrap, name, ident, spec, root, shown, self._lifetime)
        plan = self._plan(directory, manifest, spec, argv)
        plan["network"] = network
        done = await process.run([sys.executable, "-I", "-S", str(_LAUNCHER), ident], stdin=msgspec.json.encode(plan))
        if done.status == 2:
            timeout = self._settings.boot_timeout
            raise BootTimeout(f"machine {name} was not ready in {timeout:g}s", hint="hv doctor", machine=name)
        if not done.ok or directory.init() is None:
            why = directory.log_tail() or done.error_output(500) or "it reported no reason"
            raise BootFailed(f"machine {name} did not start: {why[-500:]}", hint="hv doctor", machine=name)

    def _prepare_directory(self, directory: MachineDirectory, ident: str, spec: MachineSpec) -> Manifest:
        """Record what is going to exist, then create it."""
        self._discover()
        manifest = Manifest(
            ident=ident,
            image=spec.image.id,
            created_at=time.time(),
            metadata=dict(spec.metadata),
            cgroups=self._cgroups.groups(ident),
            env=dict(spec.image.env),
        )
        directory.path.mkdir(parents=True)
        directory.write(manifest)
        directory.home.mkdir()
        seccomp.install(directory.confine, 0o700)
        if spec.image != HOST:
            skeleton = self._roots.find(spec.image) / "home" / "agent"
            shutil.copytree(skeleton, directory.home, symlinks=True, dirs_exist_ok=True)
        else:
            layout.write_users(directory.etc, self.capabilities, spec.network)
        for shared in (spec.session, spec.door):
            if shared is not None:
                shared.mkdir(parents=True, exist_ok=True)
        self._cgroups.create(ident, spec.shape)
        return manifest

    def _plan(
        self, directory: MachineDirectory, manifest: Manifest, spec: MachineSpec, argv: list[str]
    ) -> dict[str, object]:
        """Return the launcher's input. `own` marks a directory whose files the machine's user owns."""
        own = {"home": directory.home, "session": spec.session, "door": spec.door}
        stage = {name: {"path": str(path), "own": True} for name, path in own.items() if path is not None}
        if spec.image != HOST:
            stage["root"] = {"path": str(self._roots.find(spec.image)), "own": False}
        if directory.etc.is_dir():
            stage["etc"] = {"path": str(directory.etc), "own": False}
        return {
            "argv": argv,
            "env": layout.environment(self.capabilities),
            "stage": stage,
            "seccomp": seccomp.program().hex() if seccomp.available() else "",
            "uid": self._uid,
            "pids": spec.shape.pids,
            "cgroups": manifest.cgroups,
            "log": str(directory.log),
            "pid_file": str(directory.pid_file),
            "timeout": self._settings.boot_timeout,
        }

    def _root_options(self, image: Image) -> list[str]:
        if image == HOST:
            return layout.host_root()
        self._roots.find(image)
        return layout.image_root()

    async def get(self, name: str) -> Machine:
        check_machine_name(name)
        directory = self._directory(name)
        if not directory.path.is_dir():
            raise NoSuchMachine(f"no machine {name}", hint="hv ps", machine=name)
        manifest = directory.manifest() or record.unknown()
        status, reason = self._status(name, directory, manifest)
        return Machine(
            name=name,
            status=status,
            provider=self.name,
            image=manifest.image,
            created_at=manifest.created_at,
            reason=reason,
            metadata=manifest.metadata,
        )

    def _status(self, name: str, directory: MachineDirectory, manifest: Manifest) -> tuple[MachineStatus, str]:
        if name in self._booting:
            return MachineStatus.BOOTING, ""
        if directory.init() is not None:
            return MachineStatus.READY, ""
        if manifest.stopped:
            return MachineStatus.STOPPED, ""
        if directory.pid_file.exists():
            return MachineStatus.ERROR, "its process 1 is gone: it was killed, or its host restarted"
        return MachineStatus.ERROR, "its start was interrupted"

    async def list(self) -> list[Machine]:
        found = []
        for name in sorted(await self.names()):
            with contextlib.suppress(NoSuchMachine):  # it may have been removed since
                found.append(await self.get(name))
        return found

    async def names(self) -> set[str]:
        try:
            entries = list(os.scandir(self._state))
        except FileNotFoundError:
            return set()
        return {
            entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        }

    async def stop(self, name: str) -> None:
        check_machine_name(name)
        async with _lock_of(self._locks, name):
            await self.get(name)
            directory = self._directory(name)
            if (manifest := directory.manifest()) is not None:
                await self._kill(directory, manifest)
            directory.write(msgspec.structs.replace(manifest or record.unknown(), stopped=True))

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with _lock_of(self._locks, name):
            await self._destroy(name)

    async def _destroy(self, name: str) -> None:
        directory = self._directory(name)
        if not directory.path.is_dir():
            return
        manifest = directory.manifest()
        if manifest is not None:
            await self._kill(directory, manifest)
        await anyio.to_thread.run_sync(directory.remove)

    async def _kill(self, directory: MachineDirectory, manifest: Manifest) -> None:
        """Kill all processes of a machine, and return when they have ended."""
        init = directory.recorded()
        processes = {init} if init is not None else set()
        for one in processes:  # first: a busy machine makes the search below take long
            one.kill()
        with anyio.move_on_after(_KILL_TIMEOUT) as budget:
            while True:
                # Before the search: a process that ends during it may have started a child that the search missed.
                processes = {one for one in processes if not one.has_ended()}
                processes |= await anyio.to_thread.run_sync(members.find, manifest.ident, manifest.cgroups, init)
                if not processes:
                    break
                for one in processes:
                    one.kill()
                await anyio.sleep(0.02)
        if budget.cancelled_caught:
            raise ProviderError(
                f"{directory.path.name} cannot be killed", hint=f"grep -l {manifest.ident} /proc/*/cmdline"
            )
        await cgroups.remove(manifest.cgroups)

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        yield ShellGuest(await self._entrance(name), self.capabilities)

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        words = terminal_words(secrets.token_hex(8), command, self.capabilities)
        return await (await self._entrance(name)).terminal(words)

    async def pause(self, name: str) -> None:
        async with _lock_of(self._locks, name):
            await (await self._pause(name))[0].begin()

    async def resume(self, name: str) -> None:
        async with _lock_of(self._locks, name):
            await (await self._pause(name))[0].end()

    async def _entrance(self, name: str) -> Entrance:
        pause, manifest = await self._pause(name)
        # A machine that an older version of Hiveyard booted has no such file yet.
        confine = seccomp.install(self._directory(name).confine, 0o700)
        return Entrance(name, pause, self._uid, manifest, layout.environment(self.capabilities), confine)

    async def _pause(self, name: str) -> tuple[MachinePause, Manifest]:
        machine = await self.get(name)
        directory = self._directory(name)
        init, manifest = directory.init(), directory.manifest()
        if init is None or manifest is None or machine.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {machine.status}", machine=name)
        return MachinePause(name, init, manifest.cgroups, directory.halted, _lock_of(self._gates, name)), manifest

    def _directory(self, name: str) -> MachineDirectory:
        return MachineDirectory(self._state / name)


def _lock_of(locks: weakref.WeakValueDictionary[str, anyio.Lock], name: str) -> anyio.Lock:
    """Return the lock of one machine. It exists for as long as it is used."""
    lock = locks.get(name)
    if lock is None:
        lock = locks[name] = anyio.Lock()
    return lock


def _disk_error(error: OSError, directory: Path) -> HiveyardError:
    reasons = [why for *_, why in error.args[0]] if isinstance(error, shutil.Error) else [str(error)]
    if any(why.startswith(_FULL) for why in reasons):
        return NoSpace(f"no space for a machine at {directory}", hint=f"df -h {directory}")
    return BootFailed(f"cannot prepare {directory}: {reasons[0]}")
