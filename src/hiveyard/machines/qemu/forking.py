"""Start one machine: as a fork of a template, or with a full boot of its disk if templates are off."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import anyio
import asyncssh

from hiveyard.core.errors import BootTimeout
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.personalize import personalize
from hiveyard.machines.qemu.record import QemuDirectory, Record
from hiveyard.machines.qemu.serial_shell import SerialShell, open_shell
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
    record = record.ready(running.vm, port, running.run)
    record.write(fork.directory.record)
    return record, shell


async def _files(fork: Fork) -> Start:
    """Create the machine's files on disk, and return how to start it."""
    top = fork.directory.run / "disk.qcow2"
    if fork.origin.frozen is not None:
        shutil.copyfile(fork.origin.frozen / "blank.qcow2", top)
    else:
        await overlay(top, "disk.raw", "raw", fork.spec.shape.disk_gib)
    session, door = fork.spec.session, fork.spec.door
    if session is None:
        session = fork.directory.root / "session"
        session.mkdir()
    if door is None:
        door = fork.directory.run
    for path in (fork.directory.run, top):
        fork.user.give(path)
    return Start(
        label=fork.label,
        qemu=fork.qemu,
        user=fork.user,
        shape=fork.spec.shape,
        origin=fork.origin,
        session=session,
        door=door,
        network=fork.spec.network,
    )


async def _wake(fork: Fork, running: Running, key: asyncssh.SSHKey) -> tuple[int, SerialShell]:
    """Wake the frozen guest, or wait for one that boots. Return its ssh port and the shell for its first commands."""
    vm, wire, _ = running
    port = await ssh_port(wire)
    if fork.origin.frozen is not None:
        await thaw(wire, fork.origin.frozen / "state")
    public = key.export_public_key().decode().strip()
    await personalize(
        fork.directory.become, fork.name, public_key=public, pids=fork.spec.shape.pids, cloned=fork.origin.cloned
    )
    return port, await open_shell(fork.name, vm, fork.directory.commands)
