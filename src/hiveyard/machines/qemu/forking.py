"""Bringing one machine up: a fork of a template, or a whole boot of its disk where templates are off."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import anyio
import asyncssh

from hiveyard.core.errors import BootTimeout
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.personalize import become
from hiveyard.machines.qemu.record import Record, Rig
from hiveyard.machines.qemu.serial_shell import SerialShell, reach
from hiveyard.machines.qemu.start import Running, Start, started
from hiveyard.machines.qemu.state import console, ssh_port, thaw
from hiveyard.machines.qemu.template import Origin, overlay
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import seen


class Fork(NamedTuple):
    """A machine to be: all that is known before QEMU starts."""

    name: str
    label: str
    spec: MachineSpec
    rig: Rig
    qemu: Qemu
    user: User
    origin: Origin
    created_at: float
    timeout: float


async def bring_up(fork: Fork) -> tuple[Record, SerialShell]:
    """The machine, ready, and the way to its first commands. What it leaves behind on
    failure is the caller's to remove.

    Raises BootTimeout, BootFailed, MachineLost, NoSpace, ProviderUnavailable."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    record = Record(
        name=fork.name,
        image=fork.spec.image.id,
        status=MachineStatus.BOOTING,
        created_at=fork.created_at,
        metadata=fork.spec.metadata,
        maker=seen(os.getpid()),
        key=key.export_private_key().decode(),
        host_key=fork.origin.host_key,
        origin=str(fork.origin.frozen or ""),
        under=fork.origin.under,
        shape=fork.spec.shape,
        engine=repr(fork.qemu.choice.engine),
        version=fork.qemu.version,
        sealed=fork.qemu.seals,
    )
    fork.rig.run.mkdir(parents=True)
    fork.rig.root.chmod(0o700)
    record.write(fork.rig.record)
    start = await _files(fork)
    async with started(start, fork.rig) as running:
        try:
            with anyio.fail_after(fork.timeout):
                port, early = await _wake(fork, running, key)
        except TimeoutError:
            raise BootTimeout(
                f"machine {fork.name} was not ready within {fork.timeout:.0f}s; the last on its console:\n"
                f"{await console(running.wire)}",
                hint="free the host's processors, or set fork_timeout in section [qemu] of the settings",
                machine=fork.name,
            ) from None
    record = record.ready(running.vm, port, running.run)
    record.write(fork.rig.record)
    return record, early


async def _files(fork: Fork) -> Start:
    """Create the machine's files on disk, and return how to start it."""
    top = fork.rig.run / "disk.qcow2"
    if fork.origin.frozen is not None:
        shutil.copyfile(fork.origin.frozen / "blank.qcow2", top)
    else:
        await overlay(top, "disk.raw", "raw", fork.spec.shape.disk_gib)
    session, door = fork.spec.session, fork.spec.door
    if session is None:
        session = fork.rig.root / "session"
        session.mkdir()
    if door is None:
        door = fork.rig.run
    for path in (fork.rig.run, top):
        fork.user.owns(path)
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
    vm, wire, _ = running
    port = await ssh_port(wire)
    if fork.origin.frozen is not None:
        await thaw(wire, fork.origin.frozen / "state")
    public = key.export_public_key().decode().strip()
    await become(fork.rig.become, fork.name, public_key=public, pids=fork.spec.shape.pids, again=fork.origin.again)
    return port, await reach(fork.name, vm, fork.rig.commands)
