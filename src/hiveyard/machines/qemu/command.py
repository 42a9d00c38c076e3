"""The QEMU command line. Pure: no I/O, and no host path, only descriptors that the process is given.

A template and its forks must have the same devices in the same order, or the frozen state does not load: that is why
there is one function for both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hiveyard.core.machines import Network, Shape

MACHINE = "q35"
LAYOUT = 4  # part of a template's key: count up when the devices below or what is inside a guest changes

DOOR_ADDRESS = "10.0.2.100"
_CONSOLE_BYTES = 256 << 10
_APPEND = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 panic=-1 audit=0"


class Engine(NamedTuple):
    """The engine that runs the guest's instructions: `-accel`, `-cpu` and kernel parameters for it."""

    accel: str
    cpu: str
    append: str = ""


class Layer(NamedTuple):
    """One file of a disk, lowest first; only the last is written to."""

    file: str
    format: str


class Memory(NamedTuple):
    """A file as the guest's memory: `shared` writes through to it, else writes stay private. `sealed` opens it for
    reading only, which QEMU can from 8.2 on."""

    file: str
    shared: bool
    sealed: bool = False


class Kernel(NamedTuple):
    image: str
    initrd: str


class Sockets(NamedTuple):
    """Listening sockets by their descriptors: QMP, the guest agent, and the ports of what waits to become a machine
    and of what runs its first commands."""

    qmp: int
    agent: int
    become: int
    commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parts of one QEMU process. Paths are as QEMU opens them, below /proc/self/fd. `session` is a connected
    socket to the server of the session's directory."""

    program: str
    label: str
    engine: Engine
    shape: Shape
    disk: Sequence[Layer]
    memory: Memory | None
    kernel: Kernel | None
    session: int
    sockets: Sockets
    network: Network = Network.DOOR
    incoming: bool = False


def arguments(plan: Plan) -> list[str]:
    """The argv of QEMU. Its working directory is the one that holds `door.sock`."""
    return [
        plan.program,
        *("-name", plan.label),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # Each connection to the door is a socat of its own, which libslirp starts in its own session: so spawn stays
        # allowed, and elevateprivileges, which would kill at setsid. To gain a right no call is of use anyway: QEMU
        # and its children are started with no_new_privs and without any capability.
        *("-sandbox", "on,obsolete=deny,resourcecontrol=deny"),
        # The form that `xen-save-devices-state` writes.
        *("-global", "migration.send-configuration=off"),
        *("-machine", MACHINE + (",memory-backend=ram" if plan.memory else "")),
        *("-accel", plan.engine.accel, "-cpu", plan.engine.cpu),
        *("-smp", str(plan.shape.whole_cpus), "-m", f"{plan.shape.memory_mib}M"),
        *_memory(plan),
        *_kernel(plan),
        *_disk(plan),
        *_ports(plan),
        *_network(plan),
        *("-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"),
        *(("-incoming", "defer") if plan.incoming else ()),
    ]


def _memory(plan: Plan) -> list[str]:
    if plan.memory is None:
        return []
    options = f"id=ram,size={plan.shape.memory_mib}M,mem-path={plan.memory.file}"
    options += ",share=on" if plan.memory.shared else ",share=off"
    options += ",readonly=on,rom=off" if plan.memory.sealed else ""
    return ["-object", f"memory-backend-file,{options}"]


def _kernel(plan: Plan) -> list[str]:
    # A fork has its kernel in memory. Without the files it starts sooner and is 45 MB smaller.
    if plan.kernel is None:
        return []
    append = f"{_APPEND} {plan.engine.append}".strip()
    return ["-kernel", plan.kernel.image, "-initrd", plan.kernel.initrd, "-append", append]


def _disk(plan: Plan) -> list[str]:
    argv: list[str] = []
    for number, layer in enumerate(plan.disk):
        top = number == len(plan.disk) - 1
        node: dict[str, object] = {
            "driver": layer.format,
            "node-name": f"disk{number}",
            "read-only": not top,
            "discard": "unmap",
            "file": storage(layer.file, writable=top),
        }
        if layer.format == "qcow2":
            node["backing"] = f"disk{number - 1}" if number else None
        argv += ["-blockdev", json.dumps(node)]
    return [*argv, "-device", f"virtio-blk-pci,drive=disk{len(plan.disk) - 1}"]


def storage(file: str, *, writable: bool) -> dict[str, object]:
    """The options of a disk's file. It is open for writing only as long as QEMU writes to it, so that it can be taken
    away from QEMU when a snapshot needs it."""
    return {
        "driver": "file",
        "filename": file,
        "read-only": not writable,
        "auto-read-only": True,
        "discard": "unmap",
    }


def _ports(plan: Plan) -> list[str]:
    def listening(name: str, fd: int) -> tuple[str, str]:
        return "-chardev", f"socket,id={name},fd={fd},server=on,wait=off"

    return [
        *listening("qmp", plan.sockets.qmp),
        *("-mon", "chardev=qmp,mode=control"),
        *("-device", "virtio-serial-pci"),
        *listening("agent", plan.sockets.agent),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *listening("become", plan.sockets.become),
        *("-device", "virtserialport,chardev=become,name=hiveyard.identity"),
        *("-chardev", f"socket,id=session,fd={plan.session}"),
        *("-device", "virtserialport,chardev=session,name=hiveyard.session"),
        *listening("commands", plan.sockets.commands),
        *("-device", "virtserialport,chardev=commands,name=hiveyard.commands"),
        # A ring, because a guest can write to its console for ever.
        *("-chardev", f"ringbuf,id=console,size={_CONSOLE_BYTES}", "-device", "isa-serial,chardev=console"),
    ]


def _network(plan: Plan) -> list[str]:
    restrict = "on" if plan.network is Network.DOOR else "off"
    # Port 0: the kernel picks a free one and QEMU tells which, so two machines never fight for one. The door's
    # socket may be away while a daemon restarts: socat waits for it, two minutes. Its stderr is the guest's connection,
    # where a complaint would pass for an answer.
    # A comma in an option of QEMU is written twice.
    door = "UNIX-CONNECT:door.sock,,retry=600,,interval=0.2"
    return [
        "-netdev",
        f"user,id=net,restrict={restrict},ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"
        f",guestfwd=tcp:{DOOR_ADDRESS}:80-cmd:socat -lf /dev/null - {door}",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ]
