"""What was in a guest before credentials were installed there, to be put back when that fails."""

from __future__ import annotations

from hiveyard.core.credentials import CredentialProfile
from hiveyard.core.errors import CredentialsNotInstalled, HiveyardError
from hiveyard.core.files import SetMode
from hiveyard.core.ports import Guest
from hiveyard.credentials.inspection import Seen, contents, look, remove_empty


class PreviousFiles:
    """The former state of the paths of some profiles, as far as they were remembered."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._directories: dict[str, Seen] = {}
        self._files: dict[str, tuple[bytes, int] | None] = {}

    async def remember(self, profile: CredentialProfile) -> dict[str, Seen]:
        """Look at all that a profile will touch, and return what is there now. Raises CredentialsNotInstalled where
        something stands in its way that could not be put back, and what the guest's verbs raise."""
        directories = [one.path for one in profile.directories]
        files = [one.path for one in profile.files]
        seen = dict(zip([*directories, *files], await look(self._guest, [*directories, *files]), strict=True))
        for path in directories:
            self._directories.setdefault(path, _fitting(path, seen[path], "d"))
        there = [path for path in files if _fitting(path, seen[path], "f").kind == "f"]
        held = dict(zip(there, await contents(self._guest, there), strict=True))
        for path in files:
            self._files[path] = (held[path], seen[path].mode) if path in held else None
        return seen

    async def put_back(self) -> list[str]:
        """Make it as it was, and return what could not be done, in words. Directories that were made stay when they are
        not empty, and so do parents that no profile named."""
        left = []
        for path, former in reversed(self._files.items()):
            try:
                if former is None:
                    await self._guest.remove(path)
                else:
                    await self._guest.write_atomic(path, former[0], mode=former[1])
            except HiveyardError as error:
                left.append(error.message)
        for path, seen in reversed(self._directories.items()):
            try:
                if seen.kind == "-":
                    await remove_empty(self._guest, path)
                else:
                    await self._guest.batch([SetMode(path=path, mode=seen.mode)])
            except HiveyardError as error:
                left.append(error.message)
        return left


def _fitting(path: str, seen: Seen, kind: str) -> Seen:
    if seen.kind not in (kind, "-"):
        raise CredentialsNotInstalled(f"there is {seen.words} at {path}", path=path)
    return seen
