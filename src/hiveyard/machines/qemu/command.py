"""Build the QEMU command line. This module does no I/O and uses no host path, only descriptors that QEMU inherits.

A template and its forks must have the same devices in the same order, or the frozen state does not load. That is why
one function builds both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hiveyard.core.machines import Network, Shape

MACHINE = "q35"
LAYOUT = 5  # part of a template's key: count it up when the devices below or the programs inside a guest change

SESSION = "session"
"""How the names of the session disk's nodes in QEMU begin."""
DOOR_ADDRESS = "10.0.2.100"
_CONSOLE_BYTES = 256 << 10
_APPEND = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 panic=-1 audit=0"


class Engine(NamedTuple):
    """The engine that runs the guest's instructions: `-accel`, `-cpu` and kernel parameters for it."""

    accel: str
    cpu: str
    append: str = ""


class Layer(NamedTuple):
    """One file of a disk. Layers are listed from the lowest; only the last one is written to."""

    file: str
    format: str


class Memory(NamedTuple):
    """A file as the guest's memory. With `shared` the guest's writes reach the file, otherwise they stay private to the
    process. `sealed` opens the file read-only, which needs QEMU 8.2."""

    file: str
    shared: bool
    sealed: bool = False


class Kernel(NamedTuple):
    image: str
    initrd: str


class Sockets(NamedTuple):
    """The descriptors of listening sockets: QMP, the guest agent, and the serial ports of the guest's programs that
    personalize it (become.pl) and run its first commands (commands.pl)."""

    qmp: int
    agent: int
    become: int
    commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The parts of one QEMU process. Paths are as QEMU opens them, below /proc/self/fd. `session` is the session's
    disk, by the number of each file."""

    program: str
    label: str
    engine: Engine
    shape: Shape
    disk: Sequence[Layer]
    memory: Memory | None
    kernel: Kernel | None
    session: Mapping[int, Layer]
    sockets: Sockets
    network: Network = Network.DOOR
    incoming: bool = False


def arguments(plan: Plan) -> list[str]:
    """Return QEMU's argv. QEMU must run in the directory that holds `door.sock`."""
    return [
        plan.program,
        *("-name", plan.label),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        # libslirp starts one socat per connection to the door, each in its own session. So spawn stays allowed, and
        # elevateprivileges is not denied, because that would kill the process at setsid. No call can gain privileges
        # anyway: QEMU and its children run with no_new_privs and without any capability.
        *("-sandbox", "on,obsolete=deny,resourcecontrol=deny"),
        # The format that `xen-save-devices-state` writes.
        *("-global", "migration.send-configuration=off"),
        *("-machine", MACHINE + (",memory-backend=ram" if plan.memory else "")),
        *("-accel", plan.engine.accel, "-cpu", plan.engine.cpu),
        *("-smp", str(plan.shape.whole_cpus), "-m", f"{plan.shape.memory_mib}M"),
        *_memory(plan),
        *_kernel(plan),
        *_disk(dict(enumerate(plan.disk)), "disk"),
        *_disk(plan.session, SESSION),
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
    # A fork has its kernel in memory already. Without the files it starts faster and is 45 MB smaller.
    if plan.kernel is None:
        return []
    append = f"{_APPEND} {plan.engine.append}".strip()
    return ["-kernel", plan.kernel.image, "-initrd", plan.kernel.initrd, "-append", append]


def _disk(layers: Mapping[int, Layer], name: str) -> list[str]:
    argv: list[str] = []
    below: str | None = None
    for number, layer in layers.items():
        top = number == max(layers)
        node: dict[str, object] = {
            "driver": layer.format,
            "node-name": f"{name}{number}",
            "read-only": not top,
            "discard": "unmap",
            "file": storage(layer.file, writable=top),
        }
        if layer.format == "qcow2":
            node["backing"] = below
        below = f"{name}{number}"
        argv += ["-blockdev", json.dumps(node)]
    return [*argv, "-device", f"virtio-blk-pci,drive={below}"]


def storage(file: str, *, writable: bool) -> dict[str, object]:
    """Return the options of a disk's file. QEMU keeps it open for writing only while it writes to it, so that a
    snapshot can make it read-only."""
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
        *listening("commands", plan.sockets.commands),
        *("-device", "virtserialport,chardev=commands,name=hiveyard.commands"),
        # A ring buffer, because a guest can write to its console without end.
        *("-chardev", f"ringbuf,id=console,size={_CONSOLE_BYTES}", "-device", "isa-serial,chardev=console"),
    ]


def _network(plan: Plan) -> list[str]:
    restrict = "on" if plan.network is Network.DOOR else "off"
    # Port 0: the kernel picks a free port and QEMU reports it, so two machines never compete for one. The door's
    # socket is absent while a daemon restarts: socat waits for it for two minutes. socat's stderr is the guest's
    # connection, where an error message would look like an answer; so its log goes to /dev/null.
    # A comma inside a QEMU option is written twice.
    door = "UNIX-CONNECT:door.sock,,retry=600,,interval=0.2"
    return [
        "-netdev",
        f"user,id=net,restrict={restrict},ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"
        f",guestfwd=tcp:{DOOR_ADDRESS}:80-cmd:socat -lf /dev/null - {door}",
        "-device",
        "virtio-net-pci,netdev=net,romfile=",
    ]
