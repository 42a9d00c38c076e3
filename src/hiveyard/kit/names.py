"""Names for people to type, and names that never collide."""

from __future__ import annotations

import re
import secrets
import unicodedata

# No vowels and no similar characters: an id is never a word, and is easy to read aloud.
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"


def new_id() -> str:
    """Return a random id of 10 characters (47 bits), in lower case, that starts with a letter."""
    first = secrets.choice(_ALPHABET[8:])
    return first + "".join(secrets.choice(_ALPHABET) for _ in range(9))


def is_id(text: str) -> bool:
    """Return whether a text may be an id of `new_id`."""
    return len(text) == 10 and text[0] in _ALPHABET[8:] and all(letter in _ALPHABET for letter in text)


def slug(text: str, *, limit: int = 32, fallback: str = "task") -> str:
    """Return a slug: `Make the failing test pass!` gives `make-the-failing-test-pass`. `fallback` is used if nothing is
    left."""
    ascii_text = unicodedata.normalize("NFKD", text[: 8 * limit]).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", ascii_text.lower())
    out = ""
    for word in words:
        longer = f"{out}-{word}" if out else word
        if len(longer) > limit:
            break
        out = longer
    return out or (words[0][:limit] if words else fallback)
