"""Durations and sizes with units, such as `90s`, `1h30m`, `512m` and `2g`. A plain number has the field's own unit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from hiveyard.core.errors import BadInput
from hiveyard.kit.text import one_line

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_KIBIBYTES = {"k": 1.0, "m": 1024.0, "g": 1024.0**2, "t": 1024.0**3}
_NUMBER = r"\d{1,12}(?:\.\d{1,9})?"
_PLAIN = re.compile(rf"{_NUMBER}\Z")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|[smhdw]))+\Z")
_SIZE = re.compile(rf"({_NUMBER})([kmgt])(?:i?b)?\Z")

DURATION_PATTERN = r"^([0-9]{1,12}(\.[0-9]{1,9})?(ms|[smhdw]))+$"
SIZE_PATTERN = r"^[0-9]{1,12}(\.[0-9]{1,9})?[kmgtKMGT]([iI]?[bB])?$"
"""The same for OpenAPI, whose strings always have a unit."""


def seconds(text: str) -> float:
    """Return a duration in seconds: a plain number, or numbers with ms, s, m, h, d or w. Raises BadInput."""
    value = text.strip().lower()
    if _PLAIN.match(value):
        return float(value)
    if not _DURATION.match(value):
        raise BadInput(
            f"{one_line(text, 80)!r} is not a duration: use seconds, or a number with a unit such as 90s, 10m or 1h30m"
        )
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(rf"({_NUMBER})(ms|[smhdw])", value))


def kibibytes(text: str) -> int:
    """Return a size in KiB, rounded up: a plain number is KiB, or a number with k, m, g or t. Raises BadInput."""
    return _size(text, "k", "KiB")


def mebibytes(text: str) -> int:
    """Return a size in MiB, rounded up: a plain number is MiB, or a number with k, m, g or t. Raises BadInput."""
    return _size(text, "m", "MiB")


def gibibytes(text: str) -> int:
    """Return a size in GiB, rounded up: a plain number is GiB, or a number with k, m, g or t. Raises BadInput."""
    return _size(text, "g", "GiB")


def _size(text: str, own: str, name: str) -> int:
    """Return a size in its own unit, which a plain number has."""
    value = text.strip().lower()
    if _PLAIN.match(value):
        return math.ceil(float(value))
    if (match := _SIZE.match(value)) is None:
        raise BadInput(
            f"{one_line(text, 80)!r} is not a size: use a number of {name}, or one with a unit such as 512m or 2g"
        )
    return math.ceil(float(match[1]) * _KIBIBYTES[match[2]] / _KIBIBYTES[own])


_SIZES: dict[str, Callable[[str], int]] = {"_kib": kibibytes, "_mib": mebibytes, "_gib": gibibytes}


def of_field(name: str) -> Callable[[str], float] | None:
    """Return the parser for a field, by the end of its name; None for fields without a unit."""
    return seconds if name == "timeout" else _SIZES.get(name[-4:])


def converted(data: Mapping[str, object]) -> dict[str, object]:
    """Return a request's fields, with texts such as `10m` and `2g` as numbers. Raises BadInput that names the field."""
    found = dict(data)
    for name, value in data.items():
        if isinstance(value, str) and (parse := of_field(name)):
            try:
                found[name] = parse(value)
            except BadInput as error:
                raise BadInput(f"{name} {error.message}") from None
    return found
