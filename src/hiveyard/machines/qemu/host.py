"""Check the host's QEMU, memory, disk space and processor."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import NoMemory, NoSpace, ProviderUnavailable
from hiveyard.core.machines import Shape
from hiveyard.kit import process
from hiveyard.machines.qemu.accelerator import Choice
from hiveyard.machines.shared.namespaces import check_user_namespaces

_TOOLS = {
    "qemu-img": "qemu-utils",
    "socat": "socat",
    "mkfs.ext4": "e2fsprogs",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "prlimit": "util-linux",
}
_WITHOUT_ROOT = {"newuidmap": "uidmap"}
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?")
_OVERHEAD_MIB = 256  # QEMU's own memory, mostly translated code


class Qemu(NamedTuple):
    """The QEMU of this host and the accelerator it uses."""

    program: str
    version: str
    choice: Choice

    @property
    def kvm(self) -> bool:
        return self.choice.engine.accel == "kvm"

    @property
    def seals(self) -> bool:
        return can_seal(self.version)


def can_seal(version: str) -> bool:
    """Return whether QEMU can map a memory file copy-on-write without write permission."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (8, 2)


async def version(program: str) -> str:
    """Return QEMU's version, such as `7.2.22`. Raises ProviderUnavailable, with a hint how to install it, if a
    program is missing, and on a host that is not Linux."""
    if sys.platform != "linux":
        raise ProviderUnavailable(f"the qemu provider needs a Linux host, this host is {sys.platform}")
    for tool, package in (_TOOLS if os.geteuid() == 0 else _TOOLS | _WITHOUT_ROOT).items():
        if process.find(tool) is None:
            raise ProviderUnavailable(f"{tool} is not installed", hint=f"make setup, or: apt-get install {package}")
    if process.find(program) is None:
        raise ProviderUnavailable(f"{program} is not installed", hint="make setup, or: apt-get install qemu-system-x86")
    if os.geteuid() != 0:
        await check_user_namespaces("choose --provider docker")
    done = await process.run([program, "--version"], timeout=20)
    found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    if not done.ok or found is None:
        raise ProviderUnavailable(f"{program} --version prints: {done.error_output(200)}", hint="make setup")
    return ".".join(part or "0" for part in found.groups())


def check_memory(shape: Shape) -> None:
    """Raise NoMemory if the host has less free memory than the guest may use. A fork starts with far less, but may
    grow to its full size."""
    free = _available_mib()
    needed = shape.memory_mib + _OVERHEAD_MIB
    if free < needed:
        raise NoMemory(
            f"a machine of {shape.memory_mib} MiB needs {needed} MiB of memory, {free} MiB are free", hint="hv ps"
        )


def check_space(where: Path, mib: int) -> None:
    free = shutil.disk_usage(where).free >> 20
    if free < mib:
        raise NoSpace(f"{where} has {free} MiB free, {mib} MiB are needed", hint="hv image ls")


@contextmanager
def disk_full_as_no_space() -> Iterator[None]:
    """Raise NoSpace in place of the OSError for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(f"no disk space: {error.filename or error.strerror}", hint="df -h; hv image ls") from error


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 1 << 30


class Processor(NamedTuple):
    """The processor that a state frozen under kvm depends on: its model and the features that the kernel reports."""

    name: str
    flags: tuple[str, ...]

    def incompatibility(self, frozen: Processor) -> str:
        """Return why this processor cannot run a state that was frozen on the other; "" if it can. Additional features
        do no harm: a newer kernel names more of them."""
        if self.name != frozen.name:
            return f"this host has {self.name}"
        missing = sorted(set(frozen.flags) - set(self.flags))
        return f"this host's processor has no {', '.join(missing[:8])}" if missing else ""

    def digest(self) -> str:
        return f"{self.name} {hashlib.sha256(' '.join(self.flags).encode()).hexdigest()[:16]}"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Return the host's processor. The microcode is not part of it: a feature that an update removes is removed from
    the flags, too."""
    lines = (line.partition(":") for line in cpuinfo.read_text().partition("\n\n")[0].splitlines())
    found = {key.strip(): value.strip() for key, _, value in lines}
    number = "/".join(found.get(name, "") for name in ("cpu family", "model", "stepping"))
    return Processor(f"{found.get('model name', '')} ({number})", tuple(sorted(found.get("flags", "").split())))
