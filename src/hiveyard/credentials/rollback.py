"""Restore the previous files of a guest when the installation of credentials fails."""

from __future__ import annotations

from hiveyard.core.credentials import CredentialProfile
from hiveyard.core.errors import CredentialsNotInstalled, HiveyardError
from hiveyard.core.files import SetMode
from hiveyard.core.ports import Guest
from hiveyard.credentials.inspection import PathState, contents, look, remove_empty


class PreviousFiles:
    """The previous state of the paths of profiles."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._directories: dict[str, PathState] = {}
        self._files: dict[str, tuple[bytes, int] | None] = {}

    async def remember(self, profile: CredentialProfile) -> dict[str, PathState]:
        """Store and return the state of all paths of a profile. Raises CredentialsNotInstalled for something in their
        place that could not be restored, and what the guest's methods raise."""
        directories = [one.path for one in profile.directories]
        files = [one.path for one in profile.files]
        seen = dict(zip([*directories, *files], await look(self._guest, [*directories, *files]), strict=True))
        for path in directories:
            self._directories.setdefault(path, _expect(path, seen[path], "d"))
        there = [path for path in files if _expect(path, seen[path], "f").kind == "f"]
        held = dict(zip(there, await contents(self._guest, there), strict=True))
        for path in files:
            self._files[path] = (held[path], seen[path].mode) if path in held else None
        return seen

    async def restore(self) -> list[str]:
        """Restore the previous state, and return messages about what failed. New directories stay if they are not
        empty, and so do parents that no profile named."""
        left = []
        for path, previous in reversed(self._files.items()):
            try:
                if previous is None:
                    await self._guest.remove(path)
                else:
                    await self._guest.write_atomic(path, previous[0], mode=previous[1])
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


def _expect(path: str, seen: PathState, kind: str) -> PathState:
    if seen.kind not in (kind, "-"):
        raise CredentialsNotInstalled(f"{path} is {seen.words}", path=path)
    return seen
