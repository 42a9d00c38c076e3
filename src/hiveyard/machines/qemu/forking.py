"""Bringing one machine up: a fork of a template, or a whole boot of its disk where templates are off."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

import anyio
import asyncssh

from hiveyard.core.errors import BootTimeout, MachineLost
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.kit.group import together
from hiveyard.machines.qemu.become import become
from hiveyard.machines.qemu.disk import Disk
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.record import Record, Rig
from hiveyard.machines.qemu.ssh import Link, connect
from hiveyard.machines.qemu.start import Running, Start, started
from hiveyard.machines.qemu.state import console, ssh_port, thaw
from hiveyard.machines.qemu.template import Template, overlay
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import Vm, seen


class Fork(NamedTuple):
    """A machine to be: all that is known before QEMU starts."""

    name: str
    label: str
    spec: MachineSpec
    rig: Rig
    qemu: Qemu
    user: User
    disk: Disk
    template: Template | None
    created_at: float
    timeout: float


async def bring_up(fork: Fork) -> tuple[Record, Link]:
    """The machine, ready, and a connection to it. What it leaves behind on failure is for the caller to remove.

    Raises BootTimeout, BootFailed, MachineLost, NoSpace, ProviderUnavailable."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    record = Record(
        name=fork.name,
        image=fork.spec.image.id,
        status=MachineStatus.BOOTING,
        created_at=fork.created_at,
        metadata=fork.spec.metadata,
        maker=seen(os.getpid()),
        pids=fork.spec.shape.pids,
        key=key.export_private_key().decode(),
        host_key=fork.template.host_key if fork.template else fork.disk.host_key,
    )
    fork.rig.run.mkdir(parents=True)
    fork.rig.root.chmod(0o700)
    record.write(fork.rig.record)
    start = await _files(fork)
    async with started(start, fork.rig) as running:
        try:
            with anyio.fail_after(fork.timeout):
                vm, port, link = await _wake(fork, running, key, record.host_key)
        except TimeoutError:
            raise BootTimeout(
                f"machine {fork.name} was not ready within {fork.timeout:.0f}s; the last on its console:\n"
                f"{await console(running.wire)}",
                hint="free the host's processors, or set fork_timeout in section [qemu] of the settings",
                machine=fork.name,
            ) from None
    record = record.ready(vm, port)
    record.write(fork.rig.record)
    return record, link


async def _files(fork: Fork) -> Start:
    """What the machine needs on disk, and how to start it."""
    top = fork.rig.run / "disk.qcow2"
    if fork.template is not None:
        shutil.copyfile(fork.template.blank, top)
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
        disk=fork.disk,
        session=session,
        door=door,
        network=fork.spec.network,
        template=fork.template,
    )


async def _wake(fork: Fork, running: Running, key: asyncssh.SSHKey, host_key: str) -> tuple[Vm, int, Link]:
    vm, wire = running
    port = await ssh_port(wire)
    if fork.template is not None:
        await thaw(wire, fork.template.state)
    became = anyio.Event()
    links: list[Link] = []

    async def reach() -> None:
        while True:
            try:
                return links.append(
                    await connect(
                        fork.name,
                        vm,
                        port,
                        pids=fork.spec.shape.pids,
                        key=key,
                        host_key=host_key,
                        permitted=became.wait,
                    )
                )
            except MachineLost:
                # A guest that boots is there before its sshd; a fork has one from its first moment.
                if fork.template is not None or not vm.alive:
                    raise
                await anyio.sleep(0.1)

    async with together() as group:
        if fork.template is not None:
            group.start_soon(reach)
        public = key.export_public_key().decode().strip()
        await become(fork.rig.become, fork.name, public_key=public, share=fork.spec.session is not None)
        became.set()
        if fork.template is None:
            group.start_soon(reach)
    return vm, port, links[0]
