"""Validate the format of keys."""

from __future__ import annotations

from hiveyard.core.errors import CredentialsError
from hiveyard.kit.secret import Secret

_SHORTEST = 8  # a shorter text cannot be masked in answers without mangling them


def flaw(key: Secret) -> str:
    """Return why `key` cannot be used in a header, a line or a file, or be masked; "" if it can."""
    value = key.reveal()
    if not value.isascii() or not value.isprintable() or " " in value:
        return "has invalid characters (a space, a line break, …)"
    if len(value) < _SHORTEST:
        return f"is only {len(value)} characters long"
    return ""


def check_key(what: str, key: Secret) -> Secret:
    """Return `key` if it is valid: an invalid one could end up in the error message of a program that uses it. Raises
    CredentialsError, which does not show it."""
    if wrong := flaw(key):
        raise CredentialsError(f"the key for {what} {wrong}")
    return key
