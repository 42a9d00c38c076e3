"""What is never shown of each machine."""

from __future__ import annotations

from collections.abc import Iterable

from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret


class SecretMasks:
    """Remembers the secrets that machines know, for as long as they are there."""

    def __init__(self) -> None:
        self._known: dict[str, set[Secret]] = {}

    def add(self, machine: str, secrets: Iterable[Secret]) -> None:
        self._known.setdefault(machine, set()).update(secrets)

    def of(self, machine: str) -> frozenset[Secret]:
        return frozenset(self._known.get(machine, ()))

    def mask(self, machine: str) -> Mask:
        return Mask(self._known.get(machine, ()))

    def forget(self, machine: str) -> None:
        """Not to be known is a success."""
        self._known.pop(machine, None)
