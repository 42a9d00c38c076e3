"""Save the state of a guest's devices to a file and load it, over QMP.

The memory is not part of it. It is a file already, which a template writes through to and a fork maps copy-on-write.
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

_MINIMUM_FREE = 1 << 20
_PORT = re.compile(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s")


async def freeze(wire: Wire, state: Path) -> None:
    """Stop the guest and write the state of its devices to the file `state`. Raises NoSpace."""
    await wire.call("stop")
    await save(wire, state)


async def save(wire: Wire, state: Path) -> None:
    """Write the state of the devices of a paused guest to the new file `state`. Raises NoSpace.

    The command works without Xen. `migrate` would write the memory, too, and since QEMU 8 it fails an assertion when
    it has to write the same format (send-configuration=off)."""
    with _opened(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        try:
            await wire.call("xen-save-devices-state", filename=await wire.open_file(fd), live=False)
        except Refused as error:
            if shutil.disk_usage(state.parent).free < _MINIMUM_FREE:
                raise NoSpace(f"no disk space for the {state.name} of a VM: {error.message}", hint="df -h") from error
            raise


async def thaw(wire: Wire, state: Path) -> None:
    """Load the devices from the file `state` and resume the guest. Raises NotLoaded if the state does not load: QEMU
    reports it, or exits before it can."""
    # x-ignore-shared is for templates of older versions, which `migrate` froze: their state mentions the memory.
    capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    await wire.call("migrate-set-capabilities", capabilities=capabilities)
    with _opened(state, os.O_RDONLY) as fd:
        try:
            await wire.call("migrate-incoming", uri=f"file:{await wire.open_file(fd)}")
        except Refused:  # QEMU before 8.2 has no `file:`; recent versions take no regular file as `fd:`
            await wire.pass_fd("state", fd)
            await wire.call("migrate-incoming", uri="fd:state")
    try:
        status = await _end_of_migration(wire)
    except MachineLost as error:
        raise NotLoaded("it exited while it loaded the frozen state") from error
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
    """Return the port on the host's loopback that is forwarded to the guest's sshd."""
    table = text(await wire.call("human-monitor-command", **{"command-line": "info usernet"}))
    found = _PORT.search(table)
    if found is None:
        raise ProviderError(f"QEMU forwards no port to the guest: {one_line(table)}")
    return int(found.group(1))


async def console(wire: Wire, lines: int = 12) -> str:
    """Return the last lines of the guest's console."""
    data = text(await wire.call("ringbuf-read", device="console", size=64 << 10))
    return "\n".join(one_line(line) for line in data.splitlines()[-lines:])
