"""Make a template: boot the image, wait until it is idle, run the first commands of every machine, and freeze it.

The work that is done here once is not repeated in any fork.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import anyio
import asyncssh

from hiveyard.core.errors import BootTimeout, HiveyardError
from hiveyard.core.machines import Report, Shape
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.machines.qemu.disk import Disk
from hiveyard.machines.qemu.host import Qemu
from hiveyard.machines.qemu.record import QemuDirectory
from hiveyard.machines.qemu.session_disk import make_file
from hiveyard.machines.qemu.ssh import connect
from hiveyard.machines.qemu.start import Start, started
from hiveyard.machines.qemu.state import console, freeze, ssh_port
from hiveyard.machines.qemu.template import Origin, overlay
from hiveyard.machines.qemu.user import User
from hiveyard.machines.qemu.vm import Vm
from hiveyard.machines.qemu.wire import Wire, connected

_SETTLE = """
systemctl is-system-running --wait >/dev/null || true
until systemctl --quiet is-active hiveyard-ssh && [ -e /run/hiveyard/waiting ]; do sleep 0.2; done
"""
# udev is stopped: devices never change, and its queue would otherwise wake up in every fork.
_QUIET = """
rm -f /run/hiveyard/authorized_keys
systemctl stop systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service
systemctl list-jobs --no-legend --no-pager | head -3
sync
"""
_WARM = (
    ("bash", "-c", "cd ~ && exec true"),
    ("bash", "-c", "cat /etc/hostname | head -c 1; git --version; sha256sum /etc/hostname; stat /; id -u"),
    ("bash", "-c", "cd /tmp && git init -q warm && cd warm && git status --short && cd .. && rm -rf warm"),
)


async def build_template(
    fresh: Path,
    label: str,
    qemu: Qemu,
    user: User,
    shape: Shape,
    disk: Disk,
    *,
    session_size: int,
    timeout: float,
    report: Report,
) -> None:
    """Fill the directory `fresh` with the parts of a template. Raises BootTimeout, BootFailed, NoSpace."""
    directory = QemuDirectory(fresh / "machine")
    directory.run.mkdir(parents=True)
    directory.root.chmod(0o711)
    empty = directory.root / "empty"
    empty.mkdir()
    await make_file(fresh / "session.raw", empty, session_size)
    await overlay(fresh / "disk.qcow2", "disk.raw", "raw", shape.disk_gib)
    with (fresh / "memory").open("wb") as file:
        file.truncate(shape.memory_mib << 20)
    for path in (fresh / "disk.qcow2", fresh / "memory", fresh / "session.raw", directory.run):
        user.give(path)
    report(f"booting the template with {qemu.choice.name} (once per image and size)")
    origin = Origin((disk.layer,), disk.host_key, kernel=disk.root)
    start = Start(label=label, qemu=qemu, user=user, shape=shape, origin=origin, disk=None, door=empty, making=fresh)
    written = partial(disk_usage, *(fresh / name for name in ("memory", "state", "disk.qcow2")))
    async with measured(report, "making the template", written), started(start, directory) as running:
        vm, wire = running.vm, running.wire
        await _boot(wire, directory, timeout)
        report("warming the template")
        await _warm(vm, wire, directory, disk.host_key)
        report("freezing the template")
        await freeze(wire, fresh / "state")
        await wire.call("quit")
    await overlay(fresh / "blank.qcow2", "disk.qcow2", "qcow2", shape.disk_gib)
    shutil.rmtree(directory.root)


async def _boot(wire: Wire, directory: QemuDirectory, timeout: float) -> None:
    try:
        with anyio.fail_after(timeout):
            async with connected(directory.agent) as agent:
                await agent.synchronize()
                await agent.script(_SETTLE)
    except TimeoutError:
        raise BootTimeout(
            f"the template did not boot within {timeout:.0f}s; the last lines of its console:\n{await console(wire)}",
            hint="set boot_timeout in section [qemu] of the settings; free the host's processors",
        ) from None


async def _warm(vm: Vm, wire: Wire, directory: QemuDirectory, host_key: str) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()
    async with connected(directory.agent) as agent:
        await agent.synchronize()
        await agent.script(f"echo '{public}' > /run/hiveyard/authorized_keys\n")
        port = await ssh_port(wire)
        link = await connect("template", vm, port, pids=1024, key=key, host_key=host_key, key_accepted=_at_once)
        try:
            for _ in range(2):
                for argv in _WARM:
                    async with link.run(argv) as stream:
                        await stream.send_eof()
                        if (status := await stream.wait()) != 0:
                            raise HiveyardError(f"{argv} exited with {status} in the template")
        finally:
            await link.close()
        await agent.script(_QUIET)


async def _at_once() -> None:
    """Return at once: the guest accepts the key already."""
