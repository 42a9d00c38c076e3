"""Parts for the orchestrators of these tests."""

from __future__ import annotations

import tarfile
from pathlib import Path

import anyio

from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec
from hiveyard.core.credentials import CredentialDirectory, CredentialFile, CredentialProfile
from hiveyard.core.errors import ProcessNotStarted
from hiveyard.core.machines import Image
from hiveyard.core.ports import Guest, ProcessManager
from hiveyard.kit.clock import Clock
from hiveyard.kit.secret import Secret
from hiveyard.library import Listener, Orchestrator, RuntimeEvent
from hiveyard.library.events import log
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.processes.detached import Detached
from tests.contract.rootfs import small_image

KEY = "sk-real-Zq8TestSecret/+7vXy0123456789?&=abcdef"
PLACEHOLDER = "hv-placeholder-Zq8TestSecret-77aa"
QUOTING = Command(shell="cat ~/p/key >&2; exit 3")
"""A check that fails and says the secret."""


class Yards:
    """Orchestrators on one place of machines. `expected` are the names of those that a test leaves."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.provider = BubblewrapProvider(scratch / "m", scratch / "c")
        self.events: list[RuntimeEvent] = []
        self.hear: Listener = log
        self.expected: set[str] = set()

    def yard(self, manager: ProcessManager | None = None, **more: object) -> Orchestrator:
        parts = {"on_event": self.hear, **more}
        return Orchestrator(self.provider, manager or Detached(), CommandLine(), **parts)  # type: ignore[arg-type]

    def told(self) -> list[str]:
        """The names of the events so far."""
        return [str(event.__struct_config__.tag) for event in self.events]


def profile(name: str = "probe", *, real: bool = False, check: Command | None = None) -> CredentialProfile:
    """A directory with the key in it."""
    return CredentialProfile(
        name=name,
        directories=(CredentialDirectory(path="~/p"),),
        files=(CredentialFile(path="~/p/key", content=Secret(KEY)),),
        secrets=(Secret(KEY),),
        real=real,
        check=check,
    )


def in_the_way() -> CredentialProfile:
    """A directory where `.machine.json` is to be."""
    return CredentialProfile(name="in-the-way", directories=(CredentialDirectory(path="~/.machine.json"),))


def image_without(program: str, scratch: Path) -> Image:
    whole = small_image(scratch)
    less = scratch / "less.tar"
    with tarfile.open(whole.rootfs) as source, tarfile.open(less, "w", format=tarfile.GNU_FORMAT) as target:
        for member in source:
            if not member.name.endswith(f"/{program}"):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return Image(id="1e55", name="less", rootfs=less)


class Quoting(Detached):
    """A process manager in a guest that puts what it knows into what it answers."""

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        known = (await guest.read("~/p/key")).decode()
        placeholder = spec.command.env["ANTHROPIC_API_KEY"]
        raise ProcessNotStarted(f"no: {known}", hint=f"say {placeholder}", said=f"{known} {placeholder}")


class HeldClock(Clock):
    """Stands still; all who sleep on it wake when it `rings`."""

    def __init__(self) -> None:
        self.rings = anyio.Event()
        self.asked: list[float] = []

    def now(self) -> float:
        return 1_700_000_000.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.rings.wait()
