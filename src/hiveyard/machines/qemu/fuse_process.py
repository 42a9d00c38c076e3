"""Start and pause the process that serves a machine's session directory. It runs hiveyard.machines.fuse_server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

import hiveyard
from hiveyard.core.errors import MachineLost
from hiveyard.machines.qemu.launch import Handles, launched, short_path
from hiveyard.machines.qemu.session_share import shared
from hiveyard.machines.qemu.user import User

_TABLE_LIMIT = 128 << 20  # holds all files that a guest may know, unless it makes names very long on purpose
_QUIESCE_TIMEOUT = 10.0
_PROGRAM = f"""import sys
sys.path.insert(0, {str(Path(hiveyard.__file__).parent.parent)!r})
from hiveyard.machines.fuse_server.server import main
main()"""


async def serve(directory: Path, user: User, control: Path, guest: int, *, table: Path | None) -> None:
    """Start the server of `directory`. It ends with QEMU.

    `guest` is its end of the socket to QEMU, `control` the path of its control socket, and `table` the directory of a
    frozen machine's file table. Raises OSError if `directory` does not exist."""
    with Handles() as handles:
        handles.inherit(guest)
        root = handles.inherit(await shared(directory, user))
        listener = handles.listener(control)
        state = -1 if table is None else handles.inherit(os.open(table, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        # It is started as our own user and switches by itself, since another user may have no access to our Python.
        uid = -1 if user.uid is None else user.uid
        words = [sys.executable, "-I", "-S", "-c", _PROGRAM, *map(str, (root, guest, listener, uid, state))]
        async with launched(words, handles, cwd=Path("/"), outlive=True):
            pass


async def quiesce(control: Path) -> bytes:
    """Pause the guest's /session: no answer is in flight, and programs that use it wait until `unquiesce`.

    Returns the file table, which a fork of the machine needs. The guest must be running, unless /session is paused
    already. Raises MachineLost if the guest does not confirm in time."""
    try:
        with short_path(control) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(b"quiet\n")
            table = bytearray()
            with anyio.fail_after(_QUIESCE_TIMEOUT):
                while not table.endswith(b"\n"):
                    table += await stream.receive()
                    if len(table) > _TABLE_LIMIT:
                        raise MachineLost("the guest has too many files open to be frozen")
            return bytes(table)
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise MachineLost("the server of /session does not answer") from error
    except TimeoutError:
        raise MachineLost(f"the guest did not pause its use of /session within {_QUIESCE_TIMEOUT:.0f}s") from None


async def unquiesce(control: Path) -> None:
    """Let the guest use /session again. A /session that is not paused is a success."""
    try:
        with short_path(control) as path:
            stream = await anyio.connect_unix(path)
        async with stream:
            await stream.send(b"go\n")
    except OSError as error:
        raise MachineLost("the server of /session does not answer") from error
