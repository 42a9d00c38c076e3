"""A machine as it stood at one moment, kept so that others go on from there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hiveyard.kit.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Memory, processes and disk lie with the provider, under `name`; the session directory as it was then is at
    `session` of this host, and with the rest in a cloud, where that is None.

    `placeholder` is what programs in it know for a key, and `secrets` is what is never shown of machines that go on
    from it. One that is to be used by another process is made there of the same values.
    """

    name: str
    session: Path | None = None
    placeholder: Secret | None = None
    secrets: frozenset[Secret] = frozenset()
