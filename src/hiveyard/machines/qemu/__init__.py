"""Provide QEMU virtual machines that are forked from a template, which was booted once and frozen with its memory.

    rootfs tar -> disk.py -> template_build.py (boot, settle, freeze) -> bring_up.py (resume, personalize) -> a machine

This package must not know which session or agent a machine is for. No host path ever reaches a guest.
"""

from hiveyard.machines.qemu.provider import QemuProvider
from hiveyard.machines.qemu.settings import QemuSettings

__all__ = ["QemuProvider", "QemuSettings"]
