"""Freezing a guest's devices into a file and waking them from it, over QMP.

The memory is not part of it: it is a file already, which a template writes through to and a fork maps copy-on-write.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hiveyard.core.errors import MachineLost, NoSpace, ProviderError
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import one_line
from hiveyard.machines.qemu.launch import NotLoaded
from hiveyard.machines.qemu.wire import Refused, Wire

_LEAST = 1 << 20
_PORT = re.compile(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s")


async def freeze(wire: Wire, state: Path) -> None:
    """Stop the guest and write the state of its devices to the file `state`. Raises NoSpace."""
    await wire.call("stop")
    await save(wire, state)


async def save(wire: Wire, state: Path) -> None:
    """Write the state of the devices of a guest that stands still to the file `state`, which is made new. Raises
    NoSpace.

    The command is not only Xen's. `migrate` would write its memory, too, and since QEMU 8 it fails an assertion where
    it is to write the same form as this (send-configuration=off)."""
    with _opened(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        try:
            await wire.call("xen-save-devices-state", filename=await wire.open_file(fd), live=False)
        except Refused as error:
            if shutil.disk_usage(state.parent).free < _LEAST:
                raise NoSpace(f"no disk space for the {state.name} of a VM: {error.message}", hint="df -h") from error
            raise


async def thaw(wire: Wire, state: Path) -> None:
    """Load the devices from the file `state` and let the guest go on. Raises NotLoaded when it does not load: QEMU
    says so, or ends itself before it can."""
    # x-ignore-shared for templates that `migrate` froze, of versions before: in those is where their memory would be.
    wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    await wire.call("migrate-set-capabilities", capabilities=wanted)
    with _opened(state, os.O_RDONLY) as fd:
        try:
            await wire.call("migrate-incoming", uri=f"file:{await wire.open_file(fd)}")
        except Refused:  # QEMU before 8.2 knows no `file:`; one of late takes no file as `fd:`
            await wire.give("state", fd)
            await wire.call("migrate-incoming", uri="fd:state")
    try:
        status = await _end_of_migration(wire)
    except MachineLost as error:
        raise NotLoaded("it ended while it loaded the frozen state") from error
    if status == "failed":
        raise NotLoaded("the frozen state does not load")
    await wire.call("cont")


async def _end_of_migration(wire: Wire) -> str:
    while True:
        message = await wire.receive()
        if message.get("event") == "MIGRATION":
            status = text(record(message, "data").get("status"))
            if status in ("completed", "failed"):
                return status


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


async def ssh_port(wire: Wire) -> int:
    """The port on the host's loopback that leads to the guest's sshd."""
    table = text(await wire.call("human-monitor-command", **{"command-line": "info usernet"}))
    found = _PORT.search(table)
    if found is None:
        raise ProviderError(f"QEMU forwards no port to the guest: {one_line(table)}")
    return int(found.group(1))


async def console(wire: Wire, lines: int = 12) -> str:
    """The last lines on the guest's console."""
    data = text(await wire.call("ringbuf-read", device="console", size=64 << 10))
    return "\n".join(one_line(line) for line in data.splitlines()[-lines:])
