"""What a key can look like."""

from __future__ import annotations

from hiveyard.core.errors import CredentialsError
from hiveyard.kit.secret import Secret

_SHORTEST = 8  # a shorter text cannot be masked in answers without mangling them


def flaw(key: Secret) -> str:
    """Why `key` cannot stand in a header, a line and a file, or be masked; empty when it can."""
    value = key.reveal()
    if not value.isascii() or not value.isprintable() or " " in value:
        return "has characters that no key has (a space, a line break, …)"
    if len(value) < _SHORTEST:
        return f"is only {len(value)} characters long"
    return ""


def check_key(what: str, key: Secret) -> Secret:
    """`key`, when there is no flaw in it: one would end up in an error message of whoever tries it. Raises
    CredentialsError, which does not show it."""
    if wrong := flaw(key):
        raise CredentialsError(f"the key for {what} {wrong}")
    return key
