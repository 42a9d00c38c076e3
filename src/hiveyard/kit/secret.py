"""A secret that cannot be printed by accident."""

from __future__ import annotations


class Secret:
    """A value whose text forms are all `***`. Only `reveal()` returns it.

    It does not pickle and does not equal a plain string, so that a secret that reaches a log, an event or an exception
    by mistake shows nothing."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the plain value. Call it only at the edge where the secret is used."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __str__(self) -> str:
        return "***"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> str:
        raise TypeError("a Secret does not pickle")
