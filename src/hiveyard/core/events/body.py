"""The base of all event bodies."""

from __future__ import annotations

import msgspec

TEXT_LIMIT = 64 << 10
"""The number of characters kept of one text in an event. The raw line keeps all of it."""


class Body(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """The base of all event bodies. Fields with their default value are left out of the JSON."""

    @property
    def type(self) -> str:
        tag = self.__struct_config__.tag
        assert isinstance(tag, str)
        return tag


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error as data: its stable code, its message, and a command or sentence that helps."""

    code: str
    message: str
    hint: str = ""


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return `text`, or its first `limit` characters with a note of how many were left out."""
    if len(text) <= limit:
        return text
    return text[:limit] + f"\n[{len(text) - limit} more characters]"
