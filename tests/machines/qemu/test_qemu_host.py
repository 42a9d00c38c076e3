"""What the qemu provider says about a host, and how it finds out."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hiveyard.core.errors import NoAccelerator, ProviderUnavailable
from hiveyard.core.machines import Image, Shape, quiet
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.machines.qemu.accelerator import Accelerator, Accelerators
from hiveyard.machines.qemu.command import Engine
from hiveyard.machines.qemu.disk import Disks
from hiveyard.machines.qemu.user import builder
from hiveyard.places import places
from tests.support.vm import vm_image

pytestmark = pytest.mark.anyio

TCG = Accelerator(name="tcg", engine=Engine("tcg", "max"), hardware=False)
# Opens, takes a machine, and never runs it: as some hosts' /dev/kvm does.
LIAR = Accelerator(name="kvm", engine=Engine("tcg,thread=single", "max,-lm"), device="/dev/null", hardware=False)


async def kernel() -> Path:
    image = await vm_image()
    disk = await Disks(places().cache / "qemu" / "disks", builder(first=QemuSettings().uid).group).ensure(
        image, 20, quiet
    )
    return disk.kernel


def accelerators(known: Path, *candidates: Accelerator, wanted: str = "auto", timeout: float = 60.0) -> Accelerators:
    return Accelerators(
        candidates,
        wanted=wanted,
        program="qemu-system-x86_64",
        timeout=timeout,
        user=builder(first=QemuSettings().uid),
        known=known,
    )


@pytest.mark.real
async def test_an_accelerator_that_starts_no_kernel_is_passed_over_and_the_reason_told(tmp_path: Path) -> None:
    trials = accelerators(tmp_path / "known.json", LIAR, TCG)
    choice = await trials.choose(await kernel(), "7.2.0")
    assert choice.name == "tcg"
    assert "kvm: " in choice.reason
    assert trials.known("7.2.0") == choice
    assert trials.known("7.2.1") is None


@pytest.mark.real
async def test_what_was_found_out_counts_until_another_accelerator_may_be_used(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    trials = accelerators(tmp_path / "known.json", replace(LIAR, device=str(device)), TCG)
    choice = await trials.choose(await kernel(), "7.2.0")
    assert (choice.name, trials.known("7.2.0")) == ("tcg", choice)
    device.touch()
    assert trials.known("7.2.0") is None


@pytest.mark.real
async def test_an_accelerator_has_only_so_long(tmp_path: Path) -> None:
    trials = accelerators(tmp_path / "known.json", TCG, timeout=0.3)
    with pytest.raises(NoAccelerator, match="no kernel came up under it within 0s"):
        await trials.choose(await kernel(), "7.2.0")
    assert not (tmp_path / "known.json").exists()


async def test_an_accelerator_whose_device_is_absent_is_not_tried(tmp_path: Path) -> None:
    absent = Accelerator(name="kvm", engine=Engine("kvm", "host"), device=str(tmp_path / "kvm"))
    with pytest.raises(NoAccelerator, match=f"kvm: no {tmp_path}/kvm"):
        await accelerators(tmp_path / "known.json", absent, TCG, wanted="kvm").choose(tmp_path / "none", "7.2.0")


async def test_a_missing_qemu_is_told_with_what_to_install(tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-utils is not installed") if not os.environ.get("CI") else pytest.fail("qemu-utils is missing")
    provider = QemuProvider(state=tmp_path, cache=tmp_path, settings=QemuSettings(program="qemu-system-none"))
    readiness = await provider.readiness()
    assert not readiness.ok
    assert "qemu-system-none" in readiness.detail
    assert "apt-get install" in readiness.fix
    with pytest.raises(ProviderUnavailable):
        await provider.prepare(Image(id="0", name="none", rootfs=tmp_path / "none.tar"), Shape())
