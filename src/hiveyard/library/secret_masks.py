"""The secrets that must be masked, by machine."""

from __future__ import annotations

from collections.abc import Iterable

from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret


class SecretMasks:
    """Remembers the secrets of machines while the machines exist."""

    def __init__(self) -> None:
        self._secrets: dict[str, set[Secret]] = {}

    def add(self, machine: str, secrets: Iterable[Secret]) -> None:
        self._secrets.setdefault(machine, set()).update(secrets)

    def secrets(self, machine: str) -> frozenset[Secret]:
        return frozenset(self._secrets.get(machine, ()))

    def mask(self, machine: str) -> Mask:
        return Mask(self._secrets.get(machine, ()))

    def forget(self, machine: str) -> None:
        """Forget a machine's secrets. An unknown machine is a success."""
        self._secrets.pop(machine, None)
