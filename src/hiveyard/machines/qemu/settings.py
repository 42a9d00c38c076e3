"""Settings of the qemu provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuSettings:
    """`[qemu]` in the settings file."""

    accelerator: Literal["auto", "kvm", "hvf", "tcg"] = "auto"
    """What runs the guest's instructions; auto takes the first of kvm, hvf, tcg that a short trial boot proves."""
    program: str = "qemu-system-x86_64"
    """The QEMU program, a name in PATH or an absolute path."""
    templates: bool = True
    """Fork machines from a frozen template; false boots each from the start, which takes a hundred times as long."""
    boot_timeout: float = 300.0
    """Seconds the first boot of an image may take."""
    fork_timeout: float = 60.0
    """Seconds a fork may take until it can run a command."""
    trial_timeout: float = 15.0
    """Seconds an accelerator has to bring a kernel up before it counts as broken; emulation has four times as long."""
    uid: int = 1213595648
    """First of 65,537 host user ids that QEMU runs as when the daemon is root. They should own nothing."""
