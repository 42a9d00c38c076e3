"""Settings of tasks and turns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Defaults for tasks and sessions whose request does not set them."""

    agent: str = "claude"
    """The agent of a task that names none."""
    provider: str = "auto"
    """The provider of a task that names none; `auto` takes the strongest tier that works on this host."""
    image: str = "default"
    """The image of a task that names none."""
    account: str = ""
    """The account of keys.toml that pays for a task that names none; empty means the keys without a name."""
    memory_mib: int = 2048
    """Memory of a machine, in MiB."""
    memory_total_mib: int = 0
    """Memory that all machines together may be promised, in MiB; 0 is the host's, less 1 GiB. Tasks wait for it."""
    cpus: float = 2
    """Processors of a machine; a VM has a whole number of them."""
    disk_gib: int = 20
    """Size of a machine's own disk, in GiB; unused space takes no space on the host."""
    timeout: float = 7200.0
    """Longest time a turn may take, in seconds, by the wall clock."""
    silence: float = 1200.0
    """Longest time in seconds without any sign of life from an agent: no output and no request to a model."""
    disk_reserve_mib: int = 1024
    """Free space on the host's disk, in MiB, below which running turns are stopped before the disk is full; snapshots
    and forks leave it free."""
    output_limit_mib: int = 256
    """Most output of one turn that is kept, in MiB; an agent that writes more is stopped."""
    line_limit_mib: int = 16
    """Longest line of an agent's output, in MiB; longer lines are cut."""
    live_output_mib: int = 32
    """Output of an agent's live process, in MiB, after which another process continues its conversation, between two
    turns."""
    collect_timeout: float = 300.0
    """Longest time in seconds to collect the work from a machine."""
    collect_file_mib: int = 512
    """Size in MiB above which a file that is not committed is left out of the result; a notice names it."""
    max_tasks: int = 16
    """Tasks that run at the same time; more wait for their turn."""
    turn_snapshots: int = 10
    """Snapshots that `--snapshots turns` keeps of a session, the latest ones; 0 keeps all."""

    @property
    def reserve(self) -> int:
        """Return `disk_reserve_mib` in bytes."""
        return self.disk_reserve_mib << 20

    def __post_init__(self) -> None:
        for name in ("memory_total_mib", "turn_snapshots"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more")
        for name in (
            "memory_mib",
            "cpus",
            "disk_gib",
            "timeout",
            "silence",
            "output_limit_mib",
            "line_limit_mib",
            "live_output_mib",
            "collect_timeout",
            "collect_file_mib",
            "max_tasks",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Defaults for one agent; empty means the general default."""

    model: str = ""
    """Its model; empty means the program's own choice."""
    image: str = ""
    """The image of its machines; empty means that of section `[engine]`, or the one that brings its program."""
    account: str = ""
    """The account of keys.toml that pays for it; empty means that of section `[engine]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortSettings:
    """The range of host ports for ssh into sessions."""

    first: int = 2222
    """First port for ssh into sessions."""
    last: int = 2999
    """Last port for ssh into sessions."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise ValueError(f"ports.first is {self.first} and ports.last {self.last}: 1 <= first <= last <= 65535")
