"""Machines, and what they are made from."""

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
    """How strongly a machine is kept apart from its host. Order: `vm` > `container` > `namespace`."""

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
    """What a guest reaches: the session's door and nothing else, or also the outside."""

    DOOR = "door"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What callers may assume of every machine of a provider.

    `home` is what `~` means. `user` is who commands run as. `session` is where the shared directory appears.
    `door_url` is the address, inside the guest, of the session's door (no slash at the end); empty where machines have
    no door, so that no agent in them reaches a model. `remote` machines are on somebody else's host and cost money:
    they are used only when asked for by name, always reach the outside, and share no directory with this host.

    `home` and `user` are facts of the machines: a recipe makes that user, with that home in `/etc/passwd` and files in
    it. A provider whose machines have another home says so here, and all else goes by that; where `prepare` makes the
    user, in a base image of a cloud, the home can be set.
    """

    home: str = "/home/agent"
    user: str = "agent"
    session: str = "/session"
    door_url: str = "http://127.0.0.1:8377"
    remote: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A root filesystem, named by its content.

    `id` is the first 16 hex digits of a hash over the recipe and what it resolved to; `rootfs` is a tar file with
    numeric owners; `programs` are the versions of agent programs inside; `env` is set for every command in a machine.
    """

    id: str
    name: str
    rootfs: Path
    programs: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    created_at: float = 0.0


HOST = Image(id="host", name="host", rootfs=Path("/"))
"""The host's own programs in place of an image, read-only: only a provider of tier `namespace` can use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a machine is. `cpus` may be a fraction: a limit on processor time where the kernel sets one."""

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
                raise BadInput(f"{what} is {value}, the least is {least}")

    @property
    def whole_cpus(self) -> int:
        """`cpus` rounded up, for machines that have processors of their own."""
        return math.ceil(self.cpus)


TtlAction = Literal["stop", "terminate", "pause"]
"""What is done to a machine when its time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What a machine is made of.

    `session` is a host directory that appears at the guest's `/session`, writable, and outlives the machine.
    `door` is a host directory that holds the session's door, a unix socket called `door.sock`; the socket may be
    absent at boot and may come and go (a daemon that restarts makes it anew): connections wait for it.
    `metadata` is kept with the machine and given back by `get` and `list`.
    `ttl` is how many seconds the machine may live, None without end, and `ttl_action` what is done then: by the backend
    of a `remote` provider, whether or not anybody of ours is there; others leave it to their caller.
    """

    image: Image
    shape: Shape = Shape()
    session: Path | None = None
    door: Path | None = None
    network: Network = Network.DOOR
    ttl: int | None = None
    ttl_action: TtlAction = "terminate"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as its backend sees it now. `shape` is None where the backend does not tell.

    `ends_at` is when its time is over, in seconds since the epoch as `created_at` is, and `ttl_action` what is done to
    it then; both are None where the backend ends nothing by itself. `Orchestrator` adds what it sees to itself."""

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
class Holding:
    """Something of a provider's that takes space. `kind` is what it is: `made` from an image by `prepare`, a `machine`,
    a `snapshot`, or what is `left` of half-made ones. `image` is an id, empty where it is of none. It lies at `place`,
    or in a backend that says its `size` in bytes."""

    kind: Literal["made", "machine", "snapshot", "left"]
    name: str
    image: str = ""
    place: Path | None = None
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a provider works on this host, in words for `hv doctor`.

    `detail` is what was found (versions, the accelerator and why); `fix` is what to do when `ok` is false.
    """

    ok: bool
    detail: str
    fix: str = ""


Report = Callable[[str], None]
"""Called with one line, present tense, when a long step begins: `booting the template (once per image)`."""


def quiet(line: str) -> None:
    """A Report for callers who do not listen."""


def check_machine_name(name: str) -> str:
    """`name` when it can be a host name; BadInput otherwise. Every provider calls it first."""
    if not _MACHINE_NAME.match(name):
        raise BadInput(f"{name[:80]!r} is no machine name: 1 to 63 of a-z, 0-9 and -, no - at the ends")
    return name
