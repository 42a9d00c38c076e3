"""Parse plain data into structs. Errors name the field, its value and the valid values."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from hiveyard.core.errors import BadInput
from hiveyard.core.units import converted
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import one_line

S = TypeVar("S", bound=msgspec.Struct)
_PLACE = re.compile(r" - at `\$\.(\w+)`\Z")
_SHOWN = 80
"""The number of characters shown of an invalid value."""


def parsed(data: object, kind: type[S], what: str) -> S:
    """Return `data` as a struct. `what` is its name in errors (`task request`).

    Durations and sizes may be texts with a unit (see units.py). Raises BadInput, which names the field, its value and
    the valid values."""
    if not isinstance(data, dict):
        raise BadInput(f"a {what} must be an object, not {_shown(data)}")
    data = converted(data)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, value in data.items():
        if name not in fields:
            raise _unknown(str(name), value, fields, what)
    for name, field in fields.items():
        if field.required and name not in data:
            raise BadInput(f"a {what} needs the field {name!r}")
    try:
        return msgspec.convert(data, kind, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise BadInput(_message(str(error), data, fields, what)) from error


def _unknown(name: str, value: object, fields: Iterable[str], what: str) -> BadInput:
    close = difflib.get_close_matches(name, fields, n=1)
    return BadInput(
        f"a {what} has no field {name[:_SHOWN]!r} (here it is {_kind(value) or _shown(value)})",
        hint=f"did you mean {close[0]!r}?" if close else "fields: " + ", ".join(fields),
    )


def _message(reason: str, data: dict[str, Any], fields: Mapping[str, msgspec.structs.FieldInfo], what: str) -> str:
    place = _PLACE.search(reason)
    if place is None or place[1] not in fields:
        return f"the {what} is not valid: {reason}"
    name = place[1]
    kind = inspect.type_info(fields[name].type)
    is_secret = repr(Secret) in repr(kind)
    shown = (_kind(data[name]) or f"a {type(data[name]).__name__}") if is_secret else _shown(data[name])
    return f"{name} is {shown}, it must be {_words(kind)}"


def _kind(value: object) -> str:
    """Describe an object or a list without its parts, which may be secret."""
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else ""


def _decode(kind: type, value: object) -> object:
    """Convert a value of a type that msgspec does not know. Raises ValueError, which msgspec turns into its own."""
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise ValueError(f"Expected `str`, got `{type(value).__name__}`")


def _shown(value: object) -> str:
    """Return the value as JSON, which is how the user wrote it."""
    return one_line(json.dumps(value, ensure_ascii=False, default=repr), _SHOWN)


def _words(kind: inspect.Type) -> str:
    """Describe a type: `a number above 0 or null`."""
    if isinstance(kind, inspect.Metadata):
        return _words(kind.type)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_words(part) for part in kind.types)
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(_shown(value) for value in kind.values)
    return next((words(kind) for form, words in _WORDS.items() if isinstance(kind, form)), type(kind).__name__)


def _number(noun: str) -> Callable[[Any], str]:
    def words(kind: inspect.IntType | inspect.FloatType) -> str:
        limits = (("above", kind.gt), ("at least", kind.ge), ("below", kind.lt), ("at most", kind.le))
        bounds = ", ".join(f"{word} {limit:.10g}" for word, limit in limits if limit is not None)
        return f"{noun} ({bounds})" if bounds else noun

    return words


_WORDS: dict[type[inspect.Type], Callable[[Any], str]] = {
    inspect.NoneType: lambda _: "null",
    inspect.BoolType: lambda _: "true or false",
    inspect.StrType: lambda _: "a text",
    inspect.IntType: _number("a whole number"),
    inspect.FloatType: _number("a number"),
    inspect.DictType: lambda _: "an object",
    inspect.ListType: lambda _: "a list",
}
