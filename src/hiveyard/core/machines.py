"""Machines, and the images and sizes that they are made from."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hiveyard.core.errors import BadInput

_MACHINE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")


class Tier(enum.StrEnum):
    """The strength of a machine's isolation from its host: `vm` > `container` > `namespace`."""

    VM = "vm"
    CONTAINER = "container"
    NAMESPACE = "namespace"


class MachineStatus(enum.StrEnum):
    BOOTING = "booting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


class Network(enum.StrEnum):
    """The network access of a guest: the session's door only, or the outside too."""

    DOOR = "door"
    OPEN = "open"


class WorkspaceKind(enum.StrEnum):
    """How machines have the files of a session: a directory of the host that they share, a disk of the session
    (`SessionDisks`), or files that are carried in and out through the guest."""

    DIRECTORY = "directory"
    DISK = "disk"
    CARRIED = "carried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Facts that hold for every machine of a provider.

    `home` is the meaning of `~`. `user` runs the commands. `session` is the guest path of the session's files, and
    `workspace` how machines have them. `door_url` is the address of the session's door inside the guest (no slash at
    its end); it is empty if machines have no door, and then no agent in them reaches a model. `closes_network`: the
    network of a machine can be limited to its door. A provider that `costs_money` is used only if requested by name.

    `home` and `user` describe the machines: an image recipe makes that user, with that home in `/etc/passwd` and with
    files in it. A provider whose machines have another home declares it here, and everything else uses that value. If
    `prepare` makes the user, in a base image of a cloud, the home can be set."""

    home: str = "/home/agent"
    user: str = "agent"
    session: str = "/session"
    workspace: WorkspaceKind = WorkspaceKind.DIRECTORY
    door_url: str = "http://127.0.0.1:8377"
    closes_network: bool = True
    costs_money: bool = False

    @property
    def remote(self) -> bool:
        """Whether machines run on another host, and use none of this one's memory, images and disks."""
        return self.workspace is WorkspaceKind.CARRIED


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A root filesystem, identified by its content.

    `id` is the first 16 hex digits of a hash over the recipe and everything that it resolved to. `rootfs` is a tar file
    with numeric owners. `programs` are the versions of the agent programs inside. `env` is set for every command in a
    machine."""

    id: str
    name: str
    rootfs: Path
    programs: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    created_at: float = 0.0


HOST = Image(id="host", name="host", rootfs=Path("/"))
"""The host's own programs in place of an image, read-only. Only a provider of tier `namespace` supports it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a machine. `cpus` may be a fraction: a limit on CPU time, if the kernel supports it."""

    memory_mib: int = 2048
    cpus: float = 2
    disk_gib: int = 20
    pids: int = 1024

    def __post_init__(self) -> None:
        for what, value, least in (
            ("memory_mib", self.memory_mib, 128),
            ("cpus", self.cpus, 0.1),
            ("disk_gib", self.disk_gib, 1),
            ("pids", self.pids, 16),
        ):
            if value < least:
                raise BadInput(f"{what} is {value}, the minimum is {least}")

    @property
    def whole_cpus(self) -> int:
        """`cpus` rounded up, for machines with CPUs of their own."""
        return math.ceil(self.cpus)


TtlAction = Literal["stop", "terminate", "pause"]
"""The action at the end of a machine's time to live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """A description of a machine to make.

    `session` is a host directory whose files the guest has at `/session`. They are writable and outlive the machine:
    a directory is shared, or copied to a disk when the machine starts and back when it is stopped or removed. `disk` is
    the session's disk in its place, for a provider with `SessionDisks`: a directory that the provider made, or makes
    empty. Without both, the files are removed with the machine.
    `door` is a host directory with the session's door, a unix socket called `door.sock`. The socket may be absent at
    boot, and may disappear and return (a daemon that restarts makes a new one): connections wait for it. `metadata` is
    stored with the machine and returned by `get` and `list`. `ttl` is how many seconds the machine may live (None: no
    limit), and `ttl_action` the action then. The backend of a `remote` provider does it, whether or not Hiveyard still
    runs; for other providers it is up to the caller."""

    image: Image
    shape: Shape = Shape()
    session: Path | None = None
    disk: Path | None = None
    door: Path | None = None
    network: Network = Network.DOOR
    ttl: int | None = None
    ttl_action: TtlAction = "terminate"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The current state of a machine, as its backend sees it. `shape` is None if the backend does not report it.

    `ends_at` is the end of its time to live, in seconds since the epoch like `created_at`, and `ttl_action` the action
    then. Both are None if the backend ends nothing by itself; `Orchestrator` sets the end that it enforces itself."""

    name: str
    status: MachineStatus
    provider: str
    image: str
    created_at: float = 0.0
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    ends_at: float | None = None
    ttl_action: TtlAction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """An item of a provider that takes disk space.

    `kind` is `made` (by `prepare` from an image), `machine`, `snapshot`, or `left` (remains of half-made items).
    `image` is the id of its image, or empty. The item is at the path `place`, or in a backend that reports its `size`
    in bytes."""

    kind: Literal["made", "machine", "snapshot", "left"]
    name: str
    image: str = ""
    place: Path | None = None
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The answer to whether a provider works on this host, in words for `hv doctor`.

    `detail` is what was found (versions, the accelerator and why). `fix` says what to do if `ok` is false."""

    ok: bool
    detail: str
    fix: str = ""


Report = Callable[[str], None]
"""A progress callback. It gets one line, in the present tense, when a long step begins:
`booting the template (once per image)`."""


def quiet(line: str) -> None:
    """Ignore a progress line: a Report for callers that do not need one."""


def check_machine_name(name: str) -> str:
    """Return `name` if it is a valid host name, otherwise raise BadInput. Every provider calls this first."""
    if not _MACHINE_NAME.match(name):
        raise BadInput(f"{name[:80]!r} is not a valid machine name: use 1 to 63 of a-z, 0-9 and -, no - at the ends")
    return name
