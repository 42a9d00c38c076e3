"""What can be done to the files of a guest, as values, so that many of them make one round trip (`Guest.batch`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hiveyard.core.errors import BadInput
from hiveyard.kit.text import one_line

_WHO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile:
    """As `Guest.write_atomic`. `owner` and `group` are names or numbers of the guest; None leaves it to the guest's own
    user. Raises BadInput for what cannot be such a name."""

    path: str
    data: bytes
    mode: int = 0o644
    parents: bool = True
    owner: str | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        for who in (self.owner, self.group):
            if who is not None and not _WHO.fullmatch(who):
                raise BadInput(f"{one_line(who, 80)!r} is no name or number of a user or group")

    def __repr__(self) -> str:  # its content may be a secret
        return f"WriteFile({self.path!r}, {len(self.data)} bytes, mode={self.mode:04o})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeDirectory:
    """As `Guest.mkdir`."""

    path: str
    mode: int = 0o755
    parents: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Give a file or directory that is there a mode; no symlink is followed to it."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """As `Guest.remove`."""

    path: str


FileStep = WriteFile | MakeDirectory | SetMode | Remove
