"""Mask secrets in data, also if a secret is split between two chunks."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cached_property
from urllib.parse import quote

from hiveyard.kit.secret import Secret

_MIN_FORM = 8  # bytes; shorter forms occur by chance


class Mask:
    """Replaces each form of each secret (plain, percent-encoded, JSON-escaped, hex, base64) by stars of the same
    length.

    The length stays the same so that a Content-Length stays correct."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._secrets = tuple(secrets)

    # Computed on first use: many masks are made for an error that never happens.
    @cached_property
    def _forms(self) -> tuple[bytes, ...]:
        """All forms, longest first, because one may be part of another."""
        forms = {form for secret in self._secrets for form in _forms(secret.reveal()) if len(form) >= _MIN_FORM}
        return tuple(sorted(forms, key=len, reverse=True))

    @cached_property
    def _start(self) -> re.Pattern[bytes] | None:
        """A pattern for the possible start of a form: its first two bytes, or its first byte at the end of the data."""
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

    def partial(self, data: bytes) -> int:
        """Return how many bytes at the end of `data` may be the beginning of a secret."""
        if self._start is None:
            return 0
        tail = data[1 - len(self._forms[0]) :]
        for found in self._start.finditer(tail):
            if any(form.startswith(tail[found.start() :]) for form in self._forms):
                return len(tail) - found.start()
        return 0


class MaskedStream:
    """A stream whose secrets are masked. It delays only bytes that may be the beginning of a secret."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._mask.data(self._held + data)
        held = self._mask.partial(data)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def finish(self) -> bytes:
        rest, self._held = self._held, b""
        return rest


def _forms(value: str) -> Iterable[bytes]:
    data = value.encode("utf-8", "surrogateescape")  # as in `Mask.text`: a secret may contain any bytes
    yield data
    yield quote(data, safe="").encode()
    yield json.dumps(value)[1:-1].encode()
    yield data.hex().encode()
    for lead in range(3):
        # The base64 of a longer text contains the key at one of three alignments. The edges depend on the neighbours.
        padded = bytes(lead) + data
        first, last = -(-lead * 8 // 6), len(padded) * 8 // 6
        yield base64.b64encode(padded)[first:last]
        yield base64.urlsafe_b64encode(padded)[first:last]
