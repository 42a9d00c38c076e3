"""A snapshot of a machine, from which other machines are booted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hiveyard.kit.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A saved state of a machine.

    The provider stores memory, processes and disk under `name`. `session` is the copy of the session directory on this
    host; it is None in a cloud, where the snapshot contains it. `placeholder` is the key that programs in the snapshot
    use, and `secrets` are masked for machines that are booted from it. Another process can use the snapshot with an
    object of the same values."""

    name: str
    session: Path | None = None
    placeholder: Secret | None = None
    secrets: frozenset[Secret] = frozenset()
