"""The files of messages, on the host until their recipient's machine has them.

`ID/NAME` is a file of the message ID, or of the first of several that were sent at once. A guest sees only a copy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import anyio.to_thread

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Guest
from hiveyard.kit.files import write_atomic
from hiveyard.kit.text import one_line

GUEST_MAIL = "/session/member/mail"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")


class MailFiles:
    """The files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def keep(self, id: str, files: Mapping[str, bytes]) -> tuple[str, ...]:
        """Store files durably; return their names for the message. Raises BadInput for a name that is not safe."""
        for name in files:
            if not _NAME.match(name):
                raise BadInput(f"{one_line(name, 80)!r} is not a name for a file of a message: use a-z, 0-9, ., _, -")
        if files:
            await anyio.to_thread.run_sync(self._write, id, files)
        return tuple(f"{id}/{name}" for name in files)

    async def put(self, guest: Guest, names: Sequence[str]) -> None:
        """Copy files of messages into a guest. One that the host does not have any more is left out."""
        for name in names:
            if (path := self.path(name)).exists():
                data = await anyio.to_thread.run_sync(path.read_bytes)
                await guest.write_atomic(f"{GUEST_MAIL}/{name}", data)

    def path(self, name: str) -> Path:
        """Return the path of a file on the host."""
        return self._root / PurePosixPath(name)

    def _write(self, id: str, files: Mapping[str, bytes]) -> None:
        directory = self._root / id
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in files.items():
            write_atomic(directory / name, data, mode=0o600)
