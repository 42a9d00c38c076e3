"""Machines made of Linux namespaces by bubblewrap: tier `namespace`, no daemon, no root, a few milliseconds each.

    user, pid, mount, ipc, uts and network namespaces of their own; the root file system read-only; /tmp and /run in
    memory; /home/agent fresh; only /session outlives the machine. No capabilities, no new privileges, no further
    user namespaces.

Whose files are they? The machine's user 1000 is, outside, the daemon's own user when the daemon is not root. When it
is root, machines run as the user `uid` of the settings, and id-mapped mounts make what they write to /session belong
to root on disk: the daemon can always read and delete it, and a machine is never root. That needs Linux 5.12 and a
file system that can do it (ext4, xfs, btrfs, f2fs; tmpfs from 6.3 on).

The kernel is shared with the host: what a kernel bug gives to a local user it gives to a machine.
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
from hiveyard.machines.bubblewrap import cgroups, layout, open_network, record
from hiveyard.machines.bubblewrap.entrance import Entrance
from hiveyard.machines.bubblewrap.etc import write_users
from hiveyard.machines.bubblewrap.pause import MachinePause
from hiveyard.machines.bubblewrap.record import Made, Record
from hiveyard.machines.bubblewrap.rootfs import Roots
from hiveyard.machines.bubblewrap.settings import BubblewrapSettings
from hiveyard.machines.shared.namespaces import what_to_allow
from hiveyard.machines.shared.shell import ShellGuest, terminal_words

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PROGRAMS = ("bwrap", "nsenter", "setpriv", "tar")
_FULL = (f"[Errno {errno.ENOSPC}]", f"[Errno {errno.EDQUOT}]")  # shutil.Error has the errors of a tree as text only
_TRIAL = ".trial"
_TRIAL_LIFE = 60  # seconds: a daemon killed while it tries leaves nothing for long
_END_BUDGET = 30.0  # seconds until processes that do not die are an error
_INSTALL = "sudo apt-get install bubblewrap util-linux tar"


@of_machines
class BubblewrapProvider:
    """`state` holds a directory for each machine, `cache` the unpacked images. Both belong to this provider alone."""

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
        # One change of a machine at a time; and nobody goes in while it is being stopped.
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()
        self._gates: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()
        self._discovered = False
        self._life = ""
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
        """Boot a machine apart from the others, run a command in it, and end it."""
        trial = BubblewrapProvider(self._state / _TRIAL, Path("/nonexistent"), self._settings)
        trial._life = str(_TRIAL_LIFE)
        for left in await trial.list():
            if left.created_at < time.time() - _TRIAL_LIFE:
                await trial.terminate(left.name)
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
        """What holds a machine in, in words."""
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
        async with _kept(self._locks, name):
            if self._record(name).init() is not None:
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
        keep = self._record(name)
        ident = f"hiveyard-{secrets.token_hex(8)}"
        network = resolvers = None
        if spec.network is Network.OPEN:
            network, resolvers = {"program": open_network.program(), "ident": ident}, open_network.resolv_conf()
        try:
            made = self._lay_out(keep, ident, spec)
            if resolvers is not None:
                keep.etc.mkdir(exist_ok=True)
                (keep.etc / "resolv.conf").write_text(resolvers)
        except OSError as error:
            raise _disk_error(error, keep.directory) from error
        shown = self._settings.host_paths if spec.image == HOST else ()
        plan = self._plan(keep, made, spec, layout.command_line(bwrap, name, ident, spec, root, shown, self._life))
        plan["network"] = network
        argv = [sys.executable, "-I", "-S", str(_LAUNCHER), ident]
        done = await process.run(argv, stdin=msgspec.json.encode(plan))
        if done.status == 2:
            waited = self._settings.boot_timeout
            raise BootTimeout(f"machine {name} was not ready in {waited:g}s", hint="hv doctor", machine=name)
        if not done.ok or keep.init() is None:
            said = keep.complaint() or done.error_output(500) or "it did not say why"
            raise BootFailed(f"machine {name} did not start: {said[-500:]}", hint="hv doctor", machine=name)

    def _lay_out(self, keep: Record, ident: str, spec: MachineSpec) -> Made:
        """Write down what is going to exist, then make it."""
        self._discover()
        made = Made(
            ident=ident,
            image=spec.image.id,
            created_at=time.time(),
            metadata=dict(spec.metadata),
            cgroups=self._cgroups.groups(ident),
            env=dict(spec.image.env),
        )
        keep.directory.mkdir(parents=True)
        keep.write(made)
        keep.home.mkdir()
        if spec.image != HOST:
            skeleton = self._roots.find(spec.image) / "home" / "agent"
            shutil.copytree(skeleton, keep.home, symlinks=True, dirs_exist_ok=True)
        else:
            write_users(keep.etc, self.capabilities, spec.network)
        for directory in (spec.session, spec.door):
            if directory is not None:
                directory.mkdir(parents=True, exist_ok=True)
        self._cgroups.make(ident, spec.shape)
        return made

    def _plan(self, keep: Record, made: Made, spec: MachineSpec, argv: list[str]) -> dict[str, object]:
        """What the launcher is told. `own`: a directory whose files the machine's user owns."""
        own = {"home": keep.home, "session": spec.session, "door": spec.door}
        stage = {name: {"path": str(path), "own": True} for name, path in own.items() if path is not None}
        if spec.image != HOST:
            stage["root"] = {"path": str(self._roots.find(spec.image)), "own": False}
        if keep.etc.is_dir():
            stage["etc"] = {"path": str(keep.etc), "own": False}
        return {
            "argv": argv,
            "env": layout.environment(self.capabilities),
            "stage": stage,
            "uid": self._uid,
            "pids": spec.shape.pids,
            "cgroups": made.cgroups,
            "log": str(keep.log),
            "pid_file": str(keep.pid_file),
            "timeout": self._settings.boot_timeout,
        }

    def _root_options(self, image: Image) -> list[str]:
        if image == HOST:
            return layout.host_root()
        self._roots.find(image)
        return layout.image_root()

    async def get(self, name: str) -> Machine:
        check_machine_name(name)
        keep = self._record(name)
        if not keep.directory.is_dir():
            raise NoSuchMachine(f"no machine {name}", hint="hv ps", machine=name)
        made = keep.made() or record.unknown()
        status, reason = self._status(name, keep, made)
        return Machine(
            name=name,
            status=status,
            provider=self.name,
            image=made.image,
            created_at=made.created_at,
            reason=reason,
            metadata=made.metadata,
        )

    def _status(self, name: str, keep: Record, made: Made) -> tuple[MachineStatus, str]:
        if name in self._booting:
            return MachineStatus.BOOTING, ""
        if keep.init() is not None:
            return MachineStatus.READY, ""
        if made.stopped:
            return MachineStatus.STOPPED, ""
        if keep.pid_file.exists():
            return MachineStatus.ERROR, "its process 1 is gone: it was killed, or its host restarted"
        return MachineStatus.ERROR, "its start was interrupted"

    async def list(self) -> list[Machine]:
        found = []
        for name in sorted(await self.names()):
            with contextlib.suppress(NoSuchMachine):  # it may be removed meanwhile
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
        async with _kept(self._locks, name):
            await self.get(name)
            keep = self._record(name)
            if (made := keep.made()) is not None:
                await self._end(keep, made)
            keep.write(msgspec.structs.replace(made or record.unknown(), stopped=True))

    async def terminate(self, name: str) -> None:
        check_machine_name(name)
        async with _kept(self._locks, name):
            await self._destroy(name)

    async def _destroy(self, name: str) -> None:
        keep = self._record(name)
        if not keep.directory.is_dir():
            return
        made = keep.made()
        if made is not None:
            await self._end(keep, made)
        await anyio.to_thread.run_sync(keep.remove)

    async def _end(self, keep: Record, made: Made) -> None:
        """Return when nothing of the machine runs any more."""
        doomed = {alive for alive in (keep.recorded(),) if alive is not None}
        for alive in doomed:  # before the first look, which a machine at work can draw out
            alive.kill()
        with anyio.move_on_after(_END_BUDGET) as budget:
            while True:
                # Who is gone is asked before the look: of one that ends during it a child may begin behind its back.
                doomed = {alive for alive in doomed if not alive.gone()}
                doomed |= await anyio.to_thread.run_sync(record.started_for, made.ident)
                if not doomed:
                    break
                for alive in doomed:
                    alive.kill()
                await anyio.sleep(0.02)
        if budget.cancelled_caught:
            raise ProviderError(f"{keep.directory.name} cannot be killed", hint=f"grep -l {made.ident} /proc/*/cmdline")
        await cgroups.remove(made.cgroups)

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[Guest]:
        yield ShellGuest(await self._entrance(name), self.capabilities)

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        words = terminal_words(secrets.token_hex(8), command, self.capabilities)
        return await (await self._entrance(name)).terminal(words)

    async def pause(self, name: str) -> None:
        async with _kept(self._locks, name):
            await (await self._standing(name))[0].begin()

    async def resume(self, name: str) -> None:
        async with _kept(self._locks, name):
            await (await self._standing(name))[0].end()

    async def _entrance(self, name: str) -> Entrance:
        standing, made = await self._standing(name)
        return Entrance(name, standing, self._uid, made, layout.environment(self.capabilities))

    async def _standing(self, name: str) -> tuple[MachinePause, Made]:
        machine = await self.get(name)
        keep = self._record(name)
        init, made = keep.init(), keep.made()
        if init is None or made is None or machine.status is not MachineStatus.READY:
            raise MachineNotReady(f"machine {name} is {machine.status}", machine=name)
        return MachinePause(name, init, made.cgroups, keep.halted, _kept(self._gates, name)), made

    def _record(self, name: str) -> Record:
        return Record(self._state / name)


def _kept(locks: weakref.WeakValueDictionary[str, anyio.Lock], name: str) -> anyio.Lock:
    """The lock of one machine, which lives for as long as somebody has it."""
    lock = locks.get(name)
    if lock is None:
        lock = locks[name] = anyio.Lock()
    return lock


def _disk_error(error: OSError, directory: Path) -> HiveyardError:
    said = [why for *_, why in error.args[0]] if isinstance(error, shutil.Error) else [str(error)]
    if any(why.startswith(_FULL) for why in said):
        return NoSpace(f"no space for a machine at {directory}", hint=f"df -h {directory}")
    return BootFailed(f"cannot prepare {directory}: {said[0]}")
