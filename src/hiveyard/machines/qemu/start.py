"""Starting one QEMU for one rig: from a template's frozen state, or from its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import MachineLost
from hiveyard.core.machines import Network, Shape
from hiveyard.machines.qemu.command import Kernel, Layer, Memory, Plan, Sockets, arguments
from hiveyard.machines.qemu.disk import Disk
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.launch import Handles, launched
from hiveyard.machines.qemu.record import Rig
from hiveyard.machines.qemu.share import shared
from hiveyard.machines.qemu.template import Template
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import Vm
from hiveyard.machines.qemu.wire import Wire, qmp


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What to start.

    With a `template` its state is to be thawed. `memory` is a directory with a file `memory` that the guest writes
    through to, which makes a template; `overlay` is the file of the disk to write to, in the same directory.
    `session` and `door` are host directories.
    """

    label: str
    qemu: Qemu
    user: User
    shape: Shape
    disk: Disk
    session: Path
    door: Path
    network: Network = Network.DOOR
    template: Template | None = None
    making: Path | None = None


class Running(NamedTuple):
    """A QEMU process that answers at its QMP."""

    vm: Vm
    wire: Wire


@asynccontextmanager
async def started(start: Start, rig: Rig) -> AsyncIterator[Running]:
    """A QEMU process. One that makes a template ends with the block, any other outlives us.

    Raises BootFailed with what QEMU said when it ends within the block, NoSpace, ProviderUnavailable."""
    making = start.making is not None
    with Handles() as handles:
        session = handles.opened(await shared(start.session, start.user))
        plan = _plan(start, rig, handles, session)
        argv = [*start.user.prefix(kvm=start.qemu.kvm, bound=making), *arguments(plan)]
        async with launched(argv, handles, cwd=start.door, outlive=not making) as process:
            try:
                async with qmp(rig.qmp) as wire:
                    yield Running(process.vm, wire)
            except MachineLost as error:
                raise await process.error(start.label) from error


def _plan(start: Start, rig: Rig, handles: Handles, session: str) -> Plan:
    run = handles.directory(rig.run)
    base = handles.directory(start.disk.root)
    disk = [Layer(f"{base}/disk.raw", "raw")]
    memory = None
    if start.making is not None:
        making = handles.directory(start.making)
        memory = Memory(f"{making}/memory", shared=True)
        disk.append(Layer(f"{making}/disk.qcow2", "qcow2"))
    else:
        if start.template is not None:
            frozen = handles.directory(start.template.root)
            memory = Memory(f"{frozen}/memory", shared=False, sealed=start.qemu.seals)
            disk.append(Layer(f"{frozen}/disk.qcow2", "qcow2"))
        disk.append(Layer(f"{run}/disk.qcow2", "qcow2"))
    return Plan(
        program=start.qemu.program,
        label=start.label,
        engine=start.qemu.choice.engine,
        shape=start.shape,
        disk=disk,
        memory=memory,
        kernel=None if start.template else Kernel(f"{base}/vmlinuz", f"{base}/initrd"),
        session=session,
        sockets=Sockets(handles.listener(rig.qmp), handles.listener(rig.agent), handles.listener(rig.become)),
        network=start.network,
        incoming=start.template is not None,
    )
