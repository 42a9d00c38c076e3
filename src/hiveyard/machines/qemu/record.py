"""The record of one machine on disk, with which any process of this installation can find, use and end it.

<state>/<name>/machine.json   this record, written before QEMU starts and again when the machine is ready
<state>/<name>/*.sock         control sockets: QMP, the guest agent, become.pl and commands.pl
<state>/<name>/disk/          the session's disk, unless the caller has a place for it
<state>/<name>/base/          the files of the snapshot that it started from, if any
<state>/<name>/run/           the only directory that QEMU itself may write to: its disk
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from hiveyard.core.machines import Machine, MachineStatus, Shape
from hiveyard.kit import files
from hiveyard.kit.shape import count, number, record, text
from hiveyard.machines.qemu.command import Layer
from hiveyard.machines.qemu.vm import Vm


class QemuDirectory:
    """The directory of one QEMU process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "machine.json"
        self.run = root / "run"
        self.base = root / "base"
        self.qmp = root / "qmp.sock"
        self.agent = root / "agent.sock"
        self.become = root / "become.sock"
        self.commands = root / "commands.sock"
        self.disk = root / "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of one machine.

    `key` is the private half of the machine's ssh key, `host_key` the public half of the guest's host key. `maker` is
    the process that starts it; `vm` is known once it is ready. `origin` is the directory of the template or snapshot
    that it started from, `under` are the disks below its own, and `run` is QEMU's path to the directory of its own
    disks. `disk` is the directory of the session's disk, `files` QEMU's path to it, and `session` the directory that
    the session's files are copied to at the end, if any. `halted` is the process that pauses it for a moment, to
    take a snapshot."""

    name: str
    image: str
    status: MachineStatus
    created_at: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    maker: Vm | None = None
    vm: Vm | None = None
    port: int = 0
    shape: Shape = field(default_factory=Shape)
    origin: str = ""
    under: Sequence[Layer] = ()
    run: str = ""
    disk: str = ""
    files: str = ""
    session: str = ""
    engine: str = ""
    version: str = ""
    sealed: bool = False
    halted: Vm | None = None
    key: str = ""
    host_key: str = ""

    @property
    def alive(self) -> bool:
        return self.vm is not None and self.vm.alive

    def ready(self, vm: Vm, port: int, run: str, files: str) -> Record:
        return replace(self, status=MachineStatus.READY, maker=None, vm=vm, port=port, run=run, files=files)

    def stopped(self) -> Record:
        return replace(self, status=MachineStatus.STOPPED, maker=None, vm=None, port=0, key="")

    def machine(self) -> Machine:
        """Return the machine's current state. A status in the record counts only while its process is alive."""
        status, reason = self.status, ""
        if status is MachineStatus.READY and not self.alive:
            status, reason = MachineStatus.ERROR, "its QEMU process has ended"
        elif status is MachineStatus.READY and not self.disk:
            status, reason = MachineStatus.ERROR, "an earlier Hiveyard started it, which had no disks for sessions"
        elif status is MachineStatus.BOOTING and not (self.maker and self.maker.alive):
            status, reason = MachineStatus.ERROR, "its start was not finished: the process that started it has ended"
        return Machine(
            name=self.name,
            status=status,
            provider="qemu",
            image=self.image,
            created_at=self.created_at,
            reason=reason,
            metadata=self.metadata,
            shape=self.shape,
        )

    def write(self, path: Path) -> None:
        # Not synced to disk: a power cut that loses the record also ends the machine.
        data = {
            "name": self.name,
            "image": self.image,
            "status": str(self.status),
            "created_at": self.created_at,
            "metadata": dict(self.metadata),
            "maker": self.maker and self.maker._asdict(),
            "vm": self.vm and self.vm._asdict(),
            "port": self.port,
            "shape": asdict(self.shape),
            "origin": self.origin,
            "under": self.under,
            "run": self.run,
            "disk": self.disk,
            "files": self.files,
            "session": self.session,
            "engine": self.engine,
            "version": self.version,
            "sealed": self.sealed,
            "halted": self.halted and self.halted._asdict(),
            "key": self.key,
            "host_key": self.host_key,
        }
        files.write_atomic(path, json.dumps(data).encode(), mode=0o600, durable=False)


def read(path: Path) -> Record | None:
    """Return the record at `path`; None if it does not exist or is malformed."""
    try:
        data = record(json.loads(path.read_bytes()))
        status = MachineStatus(text(data.get("status")))
    except (OSError, ValueError):
        return None
    return Record(
        name=text(data.get("name")),
        image=text(data.get("image")),
        status=status,
        created_at=number(data.get("created_at")) or 0.0,
        metadata={key: text(value) for key, value in record(data.get("metadata")).items()},
        maker=_vm(record(data, "maker")),
        vm=_vm(record(data, "vm")),
        port=count(data.get("port")),
        shape=shape(record(data, "shape")),
        origin=text(data.get("origin")),
        under=layers(data.get("under")),
        run=text(data.get("run")),
        disk=text(data.get("disk")),
        files=text(data.get("files")),
        session=text(data.get("session")),
        engine=text(data.get("engine")),
        version=text(data.get("version")),
        sealed=data.get("sealed") is True,
        halted=_vm(record(data, "halted")),
        key=text(data.get("key")),
        host_key=text(data.get("host_key")),
    )


def shape(data: Mapping[str, object]) -> Shape:
    return Shape(**{name: count(data.get(name)) for name in asdict(Shape())}) if data else Shape()


def layers(data: object) -> tuple[Layer, ...]:
    return tuple(Layer(text(file), text(kind)) for file, kind in data) if isinstance(data, list) else ()


def _vm(data: Mapping[str, object]) -> Vm | None:
    return Vm(count(data.get("pid")), count(data.get("started")), text(data.get("boot"))) if data else None
