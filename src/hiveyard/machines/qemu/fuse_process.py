"""The process that serves a machine's session directory, seen from the daemon: its start, and its pauses.

See hiveyard.machines.fuse_server, which it runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

import hiveyard
from hiveyard.core.errors import MachineLost
from hiveyard.machines.qemu.launch import Handles, launched, short
from hiveyard.machines.qemu.session_share import shared
from hiveyard.machines.qemu.user import User

_TABLE_LIMIT = 128 << 20  # all that a guest may know, unless it makes the names long to do us harm
_PATIENCE = 10.0
_PROGRAM = f"""import sys
sys.path.insert(0, {str(Path(hiveyard.__file__).parent.parent)!r})
from hiveyard.machines.fuse_server.server import main
main()"""


async def serve(directory: Path, user: User, control: Path, guest: int, *, table: Path | None) -> None:
    """Start it. It takes `guest`, its end of QEMU's socket, listens at `control`, and ends with QEMU. `table`: the
    directory of a frozen machine's table of files. Raises OSError when `directory` is not there."""
    with Handles() as handles:
        handles.closing(guest)
        root = handles.closing(await shared(directory, user))
        listener = handles.listener(control)
        state = -1 if table is None else handles.closing(os.open(table, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        # It is started by who we are and leaves that itself: another user may have no way to our Python.
        uid = -1 if user.uid is None else user.uid
        words = [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, (root, guest, listener, uid, state))]
        async with launched(words, handles, cwd=Path("/"), outlive=True):
            pass


async def hush(control: Path) -> bytes:
    """From now on the guest gets no answers from its /session, and none is on its way; what uses it waits. Returns the
    table of its files, as a machine made of it needs it. The guest must run, unless it was hushed before. Raises
    MachineLost when it does not agree."""
    try:
        with short(control) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(b"quiet\n")
            table = bytearray()
            with anyio.fail_after(_PATIENCE):
                while not table.endswith(b"\n"):
                    table += await stream.receive()
                    if len(table) > _TABLE_LIMIT:
                        raise MachineLost("the guest has too many files open to be frozen")
            return bytes(table)
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise MachineLost("what serves /session does not answer") from error
    except TimeoutError:
        raise MachineLost(f"the guest did not leave /session alone within {_PATIENCE:.0f}s") from None


async def speak(control: Path) -> None:
    """End the hush; one that is none is a success."""
    try:
        with short(control) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(b"go\n")
    except OSError as error:
        raise MachineLost("what serves /session does not answer") from error
