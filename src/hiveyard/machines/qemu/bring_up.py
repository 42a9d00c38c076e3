"""Start one machine: as a fork of a template, or with a full boot of its disk if templates are off."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import asyncssh

from hiveyard.core.errors import BootTimeout
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.kit.copying import copy_content
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.personalize import personalize
from hiveyard.machines.qemu.record import QemuDirectory, Record
from hiveyard.machines.qemu.serial_shell import SerialShell, open_shell
from hiveyard.machines.qemu.session_disk import SessionDisk, derive, make
from hiveyard.machines.qemu.start import Running, Start, started
from hiveyard.machines.qemu.state import console, ssh_port, thaw
from hiveyard.machines.qemu.template import Origin, overlay
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import find_process


class Fork(NamedTuple):
    """The description of a machine to start: everything that is known before QEMU starts."""

    name: str
    label: str
    spec: MachineSpec
    directory: QemuDirectory
    qemu: Qemu
    user: User
    origin: Origin
    created_at: float
    timeout: float
    session_size: int

    @property
    def disk(self) -> SessionDisk:
        """The session's disk: the caller's, or the machine's own."""
        return SessionDisk(self.spec.disk or self.directory.disk)


async def bring_up(fork: Fork) -> tuple[Record, SerialShell]:
    """Start a machine, wait until it is ready, and return it with the shell for its first commands.

    The caller removes what is left over after a failure.

    Raises BootTimeout, BootFailed, MachineLost, NoSpace, ProviderUnavailable."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    record = Record(
        name=fork.name,
        image=fork.spec.image.id,
        status=MachineStatus.BOOTING,
        created_at=fork.created_at,
        metadata=fork.spec.metadata,
        maker=find_process(os.getpid()),
        key=key.export_private_key().decode(),
        host_key=fork.origin.host_key,
        origin=str(fork.origin.frozen or ""),
        under=fork.origin.under,
        shape=fork.spec.shape,
        engine=repr(fork.qemu.choice.engine),
        version=fork.qemu.version,
        sealed=fork.qemu.seals,
        disk=str(fork.disk.root),
        session=str(fork.spec.session or ""),
    )
    fork.directory.run.mkdir(parents=True)
    fork.directory.root.chmod(0o700)
    record.write(fork.directory.record)
    start = await _files(fork)
    async with started(start, fork.directory) as running:
        try:
            with anyio.fail_after(fork.timeout):
                port, shell = await _wake(fork, running, key)
        except TimeoutError:
            raise BootTimeout(
                f"machine {fork.name} was not ready within {fork.timeout:.0f}s; the last lines of its console:\n"
                f"{await console(running.wire)}",
                hint="free the host's processors, or set fork_timeout in section [qemu] of the settings",
                machine=fork.name,
            ) from None
    record = record.ready(running.vm, port, running.run, running.files)
    record.write(fork.directory.record)
    return record, shell


async def _files(fork: Fork) -> Start:
    """Create the machine's files on disk, and return how to start it."""
    top = fork.directory.run / "disk.qcow2"
    if fork.origin.frozen is not None:
        shutil.copyfile(fork.origin.frozen / "blank.qcow2", top)
    else:
        await overlay(top, "disk.raw", "raw", fork.spec.shape.disk_gib)
    for path in (fork.directory.run, top):
        fork.user.give(path)
    await _provide_disk(fork)
    fork.disk.give(fork.user)
    return Start(
        label=fork.label,
        qemu=fork.qemu,
        user=fork.user,
        shape=fork.spec.shape,
        origin=fork.origin,
        disk=fork.disk,
        door=fork.spec.door or fork.directory.run,
        network=fork.spec.network,
    )


async def _provide_disk(fork: Fork) -> None:
    """Make the session's disk, unless the caller has one."""
    disk, origin = fork.disk, fork.origin
    if disk.exists:
        return
    if origin.session:
        await derive(origin.session, disk, unclean=True)
    elif fork.spec.session is None and origin.frozen is not None:
        disk.root.mkdir()
        await anyio.to_thread.run_sync(_copy_sparse, origin.frozen / "session.raw", disk.root / "0.raw")
    else:
        tree = fork.spec.session or fork.directory.root / "empty"
        tree.mkdir(exist_ok=True)
        await make(disk, tree, fork.session_size)


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb") as empty, target.open("xb") as file:
        copy_content(empty.fileno(), file.fileno())


async def _wake(fork: Fork, running: Running, key: asyncssh.SSHKey) -> tuple[int, SerialShell]:
    """Wake the frozen guest, or wait for one that boots. Return its ssh port and the shell for its first commands."""
    vm, wire = running.vm, running.wire
    port = await ssh_port(wire)
    if fork.origin.frozen is not None:
        await thaw(wire, fork.origin.frozen / "state")
    public = key.export_public_key().decode().strip()
    check, cloned = not fork.disk.clean, fork.origin.cloned
    fork.disk.mark_unclean()
    pids = fork.spec.shape.pids
    await personalize(fork.directory.become, fork.name, public_key=public, pids=pids, cloned=cloned, check=check)
    return port, await open_shell(fork.name, vm, fork.directory.commands)
