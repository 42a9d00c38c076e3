"""A small image that boots as a VM, and a QEMU provider on the user's own cache, so that the next run finds its
template."""

from __future__ import annotations

import json
from pathlib import Path

from hiveyard.core.machines import Image
from hiveyard.images.images import Images
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.paths import default_paths


async def vm_image() -> Image:
    return await Images(default_paths().cache).ensure(str(Path(__file__).with_name("vm.toml")), print)


def vm_provider(state: Path, settings: QemuSettings | None = None) -> QemuProvider:
    return QemuProvider(state=state, cache=default_paths().cache / "qemu", settings=settings or QemuSettings())


def vm_pid(state: Path, name: str) -> int:
    """The QEMU process of a machine."""
    return int(json.loads((state / name / "machine.json").read_bytes())["vm"]["pid"])
