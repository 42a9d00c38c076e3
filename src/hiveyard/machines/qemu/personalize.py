"""Turn a fork of a template into a machine of its own, in its first second.

inside/etc/hiveyard/become.pl waits for this in every template.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import anyio

from hiveyard.core.errors import BootFailed, MachineLost
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.qemu.launch import short_path


async def personalize(socket: Path, name: str, *, public_key: str, pids: int, cloned: bool) -> None:
    """Give the guest its time, name, id, randomness and key. A guest that was `cloned` from another machine also closes
    that machine's connections.

    Raises BootFailed with the guest's error message, MachineLost if it is gone."""
    fields = (
        *(str(time.time()), name, uuid.uuid4().hex, "1" if cloned else "", str(pids)),
        *(os.urandom(64).hex(), public_key),
    )
    await _send(socket, name, "\t".join(fields))


async def set_time(socket: Path, name: str, *, within: float = 60.0) -> None:
    """Set the clock of a guest that was paused. Raises BootFailed, MachineLost, and TimeoutError if the guest does not
    answer `within` that many seconds."""
    with anyio.fail_after(within):
        await _send(socket, name, str(time.time()))


async def _send(socket: Path, name: str, line: str) -> None:
    """Send a line to become.pl and wait for its answer."""
    try:
        with short_path(socket) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < 4096:
                answer += await stream.receive()
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise MachineLost(f"machine {name} ended before it was ready", machine=name) from error
    if answer != b"yes\n":
        raise BootFailed(f"machine {name} could not be set up: {one_line(decode(answer))}", machine=name)
