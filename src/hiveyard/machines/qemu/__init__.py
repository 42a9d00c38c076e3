"""Machines that are QEMU virtual machines, forked from a template that was booted once and frozen with its memory.

    rootfs tar -> disk.py -> template.py (boot, settle, freeze) -> fork.py (resume, become, ssh) -> a ready machine

It must not know which session or agent a machine is for, and no host path ever reaches a guest.
"""

from hiveyard.machines.qemu.provider import QemuProvider
from hiveyard.machines.qemu.settings import QemuSettings

__all__ = ["QemuProvider", "QemuSettings"]
