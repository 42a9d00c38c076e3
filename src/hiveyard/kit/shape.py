"""JSON from strangers, read without trusting its shape: what is not as expected is empty, and never an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def record(value: object, *path: str) -> Mapping[str, object]:
    """The object at `path` below `value`, or an empty one."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: object) -> Sequence[object]:
    """The elements of an array, or none."""
    return value if isinstance(value, list) else ()


def text(value: object) -> str:
    """A string, or an empty one. A NUL, which no database takes, and halves of surrogate pairs, which no UTF-8
    carries, are replaced."""
    if not isinstance(value, str):
        return ""
    whole = value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def count(value: object) -> int:
    """A number that counts something: whole, not negative, below 2**53; else 0."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 2**53 else 0


def number(value: object) -> float | None:
    """A finite number, or None; true and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
