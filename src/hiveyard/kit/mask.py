"""Keys taken out of whatever passes, also when one is cut in two by the edge of a chunk."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import quote

from hiveyard.kit.secret import Secret

_SHORTEST = 8  # forms shorter than this occur by chance


class Mask:
    """Replaces each form of each secret (plain, percent-encoded, JSON-escaped, base64) by stars of the same length.

    The length stays so that a Content-Length stays true.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._secrets = tuple(secrets)

    # Only when something is to be masked: many a mask is made for an error that never comes.
    @cached_property
    def _forms(self) -> tuple[bytes, ...]:
        """Longest first: one may be part of another."""
        forms = {form for secret in self._secrets for form in _forms(secret.reveal()) if len(form) >= _SHORTEST}
        return tuple(sorted(forms, key=len, reverse=True))

    @cached_property
    def _beginning(self) -> re.Pattern[bytes] | None:
        """Where a form may begin: its first two bytes, or its first at the very end."""
        pairs = b"|".join(sorted({re.escape(form[:2]) for form in self._forms}))
        firsts = b"|".join(sorted({re.escape(form[:1]) for form in self._forms}))
        return re.compile(rb"(?=%b)|(?=(?:%b)\Z)" % (pairs, firsts)) if self._forms else None

    def data(self, data: bytes) -> bytes:
        for form in self._forms:
            if form in data:
                data = data.replace(form, b"*" * len(form))
        return data

    def text(self, text: str) -> str:
        return self.data(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")

    def stream(self) -> MaskedStream:
        return MaskedStream(self)

    def begun(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of a secret."""
        if self._beginning is None:
            return 0
        tail = data[1 - len(self._forms[0]) :]
        for found in self._beginning.finditer(tail):
            if any(form.startswith(tail[found.start() :]) for form in self._forms):
                return len(tail) - found.start()
        return 0


class MaskedStream:
    """A stream with its secrets masked. Holds back only bytes that may be the beginning of one."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._mask.data(self._held + data)
        held = self._mask.begun(data)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def finish(self) -> bytes:
        rest, self._held = self._held, b""
        return rest


def _forms(value: str) -> Iterable[bytes]:
    data = value.encode("utf-8", "surrogateescape")  # as in `Mask.text`: a secret may be bytes of any kind
    yield data
    yield quote(data, safe="").encode()
    yield json.dumps(value)[1:-1].encode()
    yield data.hex().encode()
    for lead in range(3):
        # Base64 of a longer text holds that of the key at one of three alignments; edges depend on their neighbours.
        padded = bytes(lead) + data
        first, last = -(-lead * 8 // 6), len(padded) * 8 // 6
        yield base64.b64encode(padded)[first:last]
        yield base64.urlsafe_b64encode(padded)[first:last]
