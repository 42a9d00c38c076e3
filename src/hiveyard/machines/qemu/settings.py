"""Settings of the qemu provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuSettings:
    """`[qemu]` in the settings file."""

    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    """How QEMU runs the guest: kvm, or tcg (emulation). auto takes the first that boots a kernel in a short trial."""
    program: str = "qemu-system-x86_64"
    """The QEMU program, a name in PATH or an absolute path."""
    templates: bool = True
    """Fork machines from a frozen template. false boots each machine from its disk, which takes about 40 times as
    long."""
    boot_timeout: float = 300.0
    """Seconds the first boot of an image may take."""
    fork_timeout: float = 60.0
    """Seconds a fork may take until it can run a command."""
    trial_timeout: float = 15.0
    """Seconds an accelerator has to boot a kernel in a trial; emulation has four times as long."""
    session_gib: int = 64
    """Size of a session's disk, in GiB. It takes space on the host only for what is on it. A change counts for new
    sessions, and for each size a template is made."""
    uid: int = 1213595648
    """First of the 65,537 host user ids that QEMU runs as when the daemon is root. They should own nothing."""
