"""Start one QEMU process: from a frozen state, or from its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import MachineLost
from hiveyard.core.machines import Network, Shape
from hiveyard.machines.qemu.command import Kernel, Layer, Memory, Plan, Sockets, arguments
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.launch import Handles, launched
from hiveyard.machines.qemu.record import QemuDirectory
from hiveyard.machines.qemu.session_disk import SessionDisk
from hiveyard.machines.qemu.template import Origin
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import Vm
from hiveyard.machines.qemu.wire import Wire, qmp


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start of one QEMU.

    `origin` is the template, snapshot or disk to begin from. `making` is a directory with a file `memory` that the
    guest writes through to, the overlay `disk.qcow2` and an empty session disk `session.raw`, which makes a template.
    `disk` is the session's disk, None for a template. `door` is a host directory.
    """

    label: str
    qemu: Qemu
    user: User
    shape: Shape
    origin: Origin
    disk: SessionDisk | None
    door: Path
    network: Network = Network.DOOR
    making: Path | None = None


class Running(NamedTuple):
    """A QEMU process that answers on its QMP socket. `run` is its path to the directory of its root disk, `files` its
    path to the one of the session's disk."""

    vm: Vm
    wire: Wire
    run: str
    files: str


@asynccontextmanager
async def started(start: Start, directory: QemuDirectory) -> AsyncIterator[Running]:
    """Start a QEMU process. One that makes a template ends with the block, any other outlives this process.

    Raises BootFailed if the machine is lost inside the block, with QEMU's message if it has ended; NoSpace;
    ProviderUnavailable."""
    making = start.making is not None
    with Handles() as handles:
        run = handles.directory(directory.run)
        files = handles.directory(start.disk.root) if start.disk is not None else ""
        plan = _plan(start, directory, handles, run, files)
        argv = [*start.user.prefix(kvm=start.qemu.kvm, die_with_parent=making), *arguments(plan)]
        async with launched(argv, handles, cwd=start.door, outlive=not making) as process:
            try:
                async with qmp(directory.qmp) as wire:
                    yield Running(process.vm, wire, run, files)
            except MachineLost as error:
                raise await process.error(start.label, error) from error


def _plan(start: Start, directory: QemuDirectory, handles: Handles, run: str, files: str) -> Plan:
    origin = start.origin
    disk = [Layer(f"{handles.directory(Path(file).parent)}/{Path(file).name}", kind) for file, kind in origin.under]
    memory = kernel = None
    if origin.frozen is not None:
        memory = Memory(f"{handles.directory(origin.frozen)}/memory", shared=False, sealed=start.qemu.seals)
    elif origin.kernel is not None:
        place = handles.directory(origin.kernel)
        kernel = Kernel(f"{place}/vmlinuz", f"{place}/initrd")
    if start.making is not None:
        run = handles.directory(start.making)
        memory = Memory(f"{run}/memory", shared=True)
    disk.append(Layer(f"{run}/disk.qcow2", "qcow2"))
    if start.disk is not None:
        session = {number: Layer(f"{files}/{number}.{kind}", kind) for number, kind in start.disk.numbers().items()}
    else:
        session = {0: Layer(f"{run}/session.raw", "raw")}
    return Plan(
        program=start.qemu.program,
        label=start.label,
        engine=start.qemu.choice.engine,
        shape=start.shape,
        disk=disk,
        memory=memory,
        kernel=kernel,
        session=session,
        sockets=Sockets(*map(handles.listener, (directory.qmp, directory.agent, directory.become, directory.commands))),
        network=start.network,
        incoming=origin.frozen is not None,
    )
