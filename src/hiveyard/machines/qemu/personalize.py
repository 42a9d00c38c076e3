"""Turn a fork of a template into a machine of its own, in its first second.

inside/etc/hiveyard/become.pl waits for this in every template.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Literal

import anyio

from hiveyard.core.errors import BootFailed, MachineLost
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.qemu.launch import short_path

Work = Literal["sync", "freeze", "thaw"]
"""The actions of become.pl on the session's file system: write all changes to the disk, also hold back further ones,
and end that."""


async def personalize(
    socket: Path, name: str, *, public_key: str, pids: int, cloned: bool, check: bool = False
) -> None:
    """Give the guest its time, name, id, randomness and key, and mount the session's disk, after a `check` of its file
    system. A guest that was `cloned` from another machine has it mounted, and closes that machine's connections.

    Raises BootFailed with the guest's error message, MachineLost if it is gone."""
    mount = "" if cloned else "check" if check else "mount"
    fields = (
        *(str(time.time()), name, uuid.uuid4().hex, "1" if cloned else "", str(pids)),
        *(os.urandom(64).hex(), mount, public_key),
    )
    await _send(socket, name, "\t".join(fields))


async def set_time(socket: Path, name: str, *, within: float = 60.0) -> None:
    """Set the clock of a guest that was paused. Raises BootFailed, MachineLost, and TimeoutError if the guest does not
    answer `within` that many seconds."""
    with anyio.fail_after(within):
        await _send(socket, name, str(time.time()))


async def session_files(socket: Path, name: str, work: Work, *, within: float = 10.0) -> None:
    """Let the guest do `work` with the file system of its session. Raises BootFailed with the guest's error message,
    MachineLost, and TimeoutError if it is not done `within` that many seconds."""
    with anyio.fail_after(within):
        await _send(socket, name, work)


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
