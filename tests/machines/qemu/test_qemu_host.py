"""How the qemu provider checks a host and chooses its accelerator."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import NoAccelerator, ProviderUnavailable
from hiveyard.core.machines import Image, Shape, quiet
from hiveyard.kit.lock import file_lock
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.machines.qemu.accelerator import Accelerator, Accelerators
from hiveyard.machines.qemu.command import Engine
from hiveyard.machines.qemu.disk import Disks
from hiveyard.machines.qemu.host import processor
from hiveyard.machines.qemu.user import User, builder
from hiveyard.paths import default_paths
from tests.support.vm import vm_image

pytestmark = pytest.mark.anyio

TCG = Accelerator(name="tcg", engine=Engine("tcg", "max"), hardware=False)
# It opens and accepts a machine, but never runs it, as /dev/kvm does on some hosts.
LIAR = Accelerator(name="kvm", engine=Engine("tcg,thread=single", "max,-lm"), device="/dev/null")


async def kernel() -> Path:
    image, cache = await vm_image(), default_paths().cache / "qemu"
    async with file_lock(cache / "locks" / image.id):  # other processes may be making the same disk
        disk = await Disks(cache / "disks", builder(first=QemuSettings().uid).group).ensure(image, 20, quiet)
    return disk.kernel


def accelerators(known: Path, *candidates: Accelerator, requested: str = "auto", timeout: float = 20.0) -> Accelerators:
    return Accelerators(
        candidates,
        requested=requested,
        program="qemu-system-x86_64",
        timeout=timeout,
        user=builder(first=QemuSettings().uid),
        known=known,
    )


@pytest.mark.real
async def test_an_accelerator_that_boots_no_kernel_is_skipped_and_the_reason_is_reported(tmp_path: Path) -> None:
    trials = accelerators(tmp_path / "known.json", LIAR, TCG)
    choice = await trials.choose(await kernel(), "7.2.0")
    assert choice.name == "tcg"
    assert "kvm: " in choice.reason
    assert trials.known("7.2.0") == choice
    assert trials.known("7.2.1") is None


@pytest.mark.real
async def test_a_result_is_kept_until_another_accelerator_is_available(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    trials = accelerators(tmp_path / "known.json", replace(LIAR, device=str(device)), TCG)
    choice = await trials.choose(await kernel(), "7.2.0")
    assert (choice.name, trials.known("7.2.0")) == ("tcg", choice)
    device.touch()
    assert trials.known("7.2.0") is None


@pytest.mark.real
async def test_a_trial_has_a_time_limit(tmp_path: Path) -> None:
    trials = accelerators(tmp_path / "known.json", TCG, timeout=0.05)
    with pytest.raises(NoAccelerator, match="no kernel booted under it within 0s"):
        await trials.choose(await kernel(), "7.2.0")
    assert not (tmp_path / "known.json").exists()


async def test_an_accelerator_whose_device_is_absent_is_not_tried(tmp_path: Path) -> None:
    absent = Accelerator(name="kvm", engine=Engine("kvm", "host"), device=str(tmp_path / "kvm"))
    with pytest.raises(NoAccelerator, match=f"kvm: no {tmp_path}/kvm"):
        await accelerators(tmp_path / "known.json", absent, TCG, requested="kvm").choose(tmp_path / "none", "7.2.0")


# Boots nothing. It prints what QEMU prints when another hypervisor uses the processor, and when a kernel has no root.
BUSY = """#!/bin/sh
case "$*" in
*"-accel kvm"*) [ -e {busy} ] && {{ echo "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy" >&2; exit 1; }} ;;
*) [ -e {slow} ] && exit 1 ;;
esac
echo "Unable to mount root fs"
"""


def busy_host(place: Path, retry_after: float) -> Accelerators:
    program = place / "qemu"
    program.write_text(BUSY.format(busy=place / "busy", slow=place / "slow"))
    program.chmod(0o755)
    (place / "busy").touch()
    kvm = Accelerator(name="kvm", engine=Engine("kvm", "host"), device="/dev/null")
    return Accelerators(
        [kvm, TCG],
        requested="auto",
        program=str(program),
        timeout=30,
        user=User(None, None),
        known=place / "known.json",
        retry_after=retry_after,
    )


async def test_an_available_accelerator_that_failed_is_tried_again_later(tmp_path: Path) -> None:
    trials = busy_host(tmp_path, retry_after=0.0)
    choice = await trials.choose(tmp_path / "busy", "7.2.0")
    assert choice.name == "tcg"
    assert "kvm: " in choice.reason and "busy" in choice.reason
    (tmp_path / "slow").touch()
    assert (await trials.choose(tmp_path / "busy", "7.2.0")).name == "tcg", "the one that works stays"
    (tmp_path / "busy").unlink()
    assert trials.known("7.2.0") is not None, "a boot does not wait for the trial"
    found = await trials.choose(tmp_path / "qemu", "7.2.0")
    assert found.name == "kvm"
    assert trials.known("7.2.0") == found
    assert [other.name for other in trials.without_hardware(found)] == ["tcg"], "for templates frozen under it"


async def test_concurrent_callers_share_one_trial(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\necho >>{tmp_path}/tried\nsleep 0.3\necho "Unable to mount root fs"\n')
    program.chmod(0o755)
    many = [
        Accelerators(
            [TCG],
            requested="auto",
            program=str(program),
            timeout=30,
            user=User(None, None),
            known=tmp_path / "known.json",
        )
        for _ in range(8)
    ]
    found = set()

    async def ask(one: Accelerators) -> None:
        found.add((await one.choose(tmp_path / "qemu", "7.2.0")).name)

    async with anyio.create_task_group() as group:
        for one in many:
            group.start_soon(ask, one)
    assert (found, (tmp_path / "tried").read_text()) == ({"tcg"}, "\n")


async def test_an_available_accelerator_that_failed_is_not_tried_each_time(tmp_path: Path) -> None:
    trials = busy_host(tmp_path, retry_after=3600.0)
    choice = await trials.choose(tmp_path / "busy", "7.2.0")
    (tmp_path / "busy").unlink()
    assert await trials.choose(tmp_path / "qemu", "7.2.0") == choice


def test_a_processor_can_run_a_state_that_was_frozen_on_one_like_it(tmp_path: Path) -> None:
    def of(text: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor\t: 0\n{text}\n\nprocessor\t: 1\nmodel name\t: other\n")
        return path

    lines = "model name\t: EPYC\ncpu family\t: 25\nmodel\t\t: {}\nstepping\t: 1\nflags\t\t: {}"
    frozen = processor(of(lines.format(17, "fpu avx rtm")))
    assert frozen.name == "EPYC (25/17/1)"
    more = processor(of(lines.format(17, "fpu avx rtm new")))
    assert more.incompatibility(frozen) == ""
    assert more.digest() != frozen.digest()
    assert processor(of(lines.format(17, "fpu avx"))).incompatibility(frozen) == "this host's processor has no rtm"
    assert processor(of(lines.format(18, "fpu avx rtm"))).incompatibility(frozen) == "this host has EPYC (25/18/1)"


async def test_the_error_for_a_missing_qemu_says_what_to_install(tmp_path: Path) -> None:
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-utils is not installed") if not os.environ.get("CI") else pytest.fail("qemu-utils is missing")
    provider = QemuProvider(state=tmp_path, cache=tmp_path, settings=QemuSettings(program="qemu-system-none"))
    readiness = await provider.readiness()
    assert not readiness.ok
    assert "qemu-system-none" in readiness.detail
    assert "apt-get install" in readiness.fix
    with pytest.raises(ProviderUnavailable):
        await provider.prepare(Image(id="0", name="none", rootfs=tmp_path / "none.tar"), Shape())
