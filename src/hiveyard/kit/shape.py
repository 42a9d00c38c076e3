"""Read untrusted JSON. A value of an unexpected type becomes an empty value, never an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def record(value: object, *path: str) -> Mapping[str, object]:
    """Return the object at `path` below `value`, or an empty one."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def items(value: object) -> Sequence[object]:
    """Return the elements of an array, or an empty sequence."""
    return value if isinstance(value, list) else ()


def text(value: object) -> str:
    """Return a string, or an empty one.

    NUL, which no database stores, and unpaired surrogates, which UTF-8 cannot encode, are replaced."""
    if not isinstance(value, str):
        return ""
    valid = value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return valid.replace("\0", "\ufffd")


def count(value: object) -> int:
    """Return a number that counts something (an integer from 0 to below 2**53), or 0."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 2**53 else 0


def number(value: object) -> float | None:
    """Return a finite number, or None. true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
