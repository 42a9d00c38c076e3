"""Copy a directory of a guest to this host: a tar stream, packed by the guest's tar and unpacked as untrusted."""

from __future__ import annotations

from pathlib import Path
from typing import IO, cast

import anyio.from_thread
import anyio.to_thread

from hiveyard.core.commands import Command
from hiveyard.core.errors import ProviderError
from hiveyard.core.ports import Guest, Stream
from hiveyard.kit.group import together
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.shared.unpacking import Unpacked, unpack

_CHANGED = 1  # the exit code of tar if a file changed while it was read
_ERRORS = 4096


async def bring_out(guest: Guest, path: str, target: Path, *, reserve: int = 0) -> Unpacked:
    """Copy the directory `path` of a guest to the new directory `target`, all of it or nothing that counts: after an
    error the caller removes what is there. Files that the guest's user may not read are left out. `reserve` bytes of
    the host's disk stay free.

    Raises BadInput for a malformed stream, NoSpace, ProviderError, and the guest's errors."""
    errors = bytearray()

    async def read_errors(stream: Stream) -> None:
        while piece := await stream.receive_error():
            errors[:] = (errors + piece)[-_ERRORS:]

    command = Command(argv=("tar", "-C", path, "--sparse", "--ignore-failed-read", "-cf", "-", "."), cwd="/")
    async with guest.open(command) as stream:
        await stream.send_eof()
        source = cast(IO[bytes], _Reader(stream))
        async with together() as group:
            group.start_soon(read_errors, stream)
            done = await anyio.to_thread.run_sync(lambda: unpack(source, target, reserve=reserve))
            while await stream.receive():
                pass  # tar pads its output after the end of the archive
        if (status := await stream.wait()) not in (0, _CHANGED):
            raise ProviderError(
                f"{path} could not be copied: tar exited with {status}: {one_line(decode(bytes(errors)))}"
            )
    return done


class _Reader:
    """A stream as a file to read from, for a thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = b""

    def read(self, size: int) -> bytes:
        if not self._held:
            self._held = anyio.from_thread.run(self._stream.receive)
        piece, self._held = self._held[:size], self._held[size:]
        return piece
