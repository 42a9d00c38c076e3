"""Turn a fork of a template into a machine of its own, in its first second.

See inside/etc/hiveyard/become.pl, which waits for this in every template.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import anyio

from hiveyard.core.errors import BootFailed, MachineLost
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.qemu.launch import short


async def become(socket: Path, name: str, *, public_key: str, pids: int, again: bool) -> None:
    """Give the guest its time, name, id, randomness and key. `again`: it has been another machine before, and what was
    connected is not any more.

    Raises BootFailed with what the guest could not do, MachineLost when it is gone."""
    fields = (
        *(str(time.time()), name, uuid.uuid4().hex, "1" if again else "", str(pids)),
        *(os.urandom(64).hex(), public_key),
    )
    await _told(socket, name, "\t".join(fields))


async def tick(socket: Path, name: str, *, within: float = 60.0) -> None:
    """Give the guest the time, which stood still for it. Raises BootFailed, MachineLost, TimeoutError for one that has
    not taken it within so many seconds."""
    with anyio.fail_after(within):
        await _told(socket, name, str(time.time()))


async def _told(socket: Path, name: str, line: str) -> None:
    try:
        with short(socket) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(line.encode() + b"\n")
            said = b""
            while not said.endswith(b"\n") and len(said) < 4096:
                said += await stream.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise MachineLost(f"machine {name} ended before it was ready", machine=name) from error
    if said != b"yes\n":
        raise BootFailed(f"machine {name} could not be set up: {one_line(decode(said))}", machine=name)
