"""File operations in a guest as values, so that many of them need one round trip (`Guest.batch`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hiveyard.core.errors import BadInput
from hiveyard.kit.text import one_line

_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile:
    """Writes a file like `Guest.write_atomic`.

    `owner` and `group` are names or numbers of the guest; None is the guest's own user. Raises BadInput for an invalid
    name."""

    path: str
    data: bytes
    mode: int = 0o644
    parents: bool = True
    owner: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for name in (self.owner, self.group):
            if name is not None and not _OWNER.fullmatch(name):
                raise BadInput(f"{one_line(name, 80)!r} is not a valid name or number of a user or group")

    def __repr__(self) -> str:  # the content may be a secret
        return f"WriteFile({self.path!r}, {len(self.data)} bytes, mode={self.mode:04o})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDirectory:
    """Makes a directory like `Guest.mkdir`."""

    path: str
    mode: int = 0o755
    parents: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Sets the mode of an existing file or directory. A symlink is not followed."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Removes a file like `Guest.remove`."""

    path: str


FileStep = WriteFile | MakeDirectory | SetMode | Remove
