"""Names that people type and names that never collide."""

from __future__ import annotations

import re
import secrets
import unicodedata

# No vowels and no look-alikes: an id is never a word and is read aloud without mistakes.
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"


def new_id() -> str:
    """A random id of 10 characters (47 bits), lower case, starting with a letter."""
    first = secrets.choice(_ALPHABET[8:])
    return first + "".join(secrets.choice(_ALPHABET) for _ in range(9))


def is_id(text: str) -> bool:
    """Whether it could be one of `new_id`."""
    return len(text) == 10 and text[0] in _ALPHABET[8:] and all(letter in _ALPHABET for letter in text)


def slug(text: str, *, limit: int = 32, fallback: str = "task") -> str:
    """`Make the failing test pass!` -> `make-the-failing-test-pass`; `fallback` when nothing usable is left."""
    ascii_text = unicodedata.normalize("NFKD", text[: 8 * limit]).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", ascii_text.lower())
    out = ""
    for word in words:
        longer = f"{out}-{word}" if out else word
        if len(longer) > limit:
            break
        out = longer
    return out or (words[0][:limit] if words else fallback)
