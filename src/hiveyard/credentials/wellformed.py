"""What a key can look like."""

from __future__ import annotations

from hiveyard.core.errors import CredentialsError
from hiveyard.kit.secret import Secret

_SHORTEST = 8  # a shorter text cannot be masked in answers without mangling them


def check_key(what: str, key: Secret) -> Secret:
    """`key`, when it can stand in a header, a line and a file: what cannot would end up in an error message of whoever
    tries. Raises CredentialsError, which does not show it."""
    value = key.reveal()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise CredentialsError(f"the key for {what} has characters that no key has (a space, a line break, …)")
    if len(value) < _SHORTEST:
        raise CredentialsError(f"the key for {what} is only {len(value)} characters long")
    return key
