"""What all event bodies are made of."""

from __future__ import annotations

import msgspec

TEXT_LIMIT = 64 << 10
"""Characters kept of one text in an event; the raw line keeps all of it."""


class Body(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What all event bodies are."""

    @property
    def type(self) -> str:
        tag = self.__struct_config__.tag
        assert isinstance(tag, str)
        return tag


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error as data: its stable code, what happened, and what to type."""

    code: str
    message: str
    hint: str = ""


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text`, or its first `limit` characters with a note of how many were left out."""
    if len(text) <= limit:
        return text
    return text[:limit] + f"\n[{len(text) - limit} more characters]"
