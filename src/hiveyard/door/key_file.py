"""Parse keys.toml: keys by vendor, and accounts with their own keys or sign-in. No error shows a key.

Error messages reach the guest, so they name a file without its directory. Hints are only for this host.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hiveyard.core.errors import BadSetting, CredentialsError
from hiveyard.credentials.claude_oauth import OAuthSettings
from hiveyard.kit.secret import Secret

VENDORS = ("anthropic", "openai", "morph")
LARGEST = 64 << 10
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_ENDPOINTS = ("token_url", "client_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """A sign-in that is stored, and refreshed, in a file with the format of Claude Code's `.credentials.json`.
    `endpoints` are fields of OAuthSettings."""

    file: Path
    endpoints: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account: keys by vendor, or a sign-in for Anthropic's models."""

    keys: Mapping[str, Secret] = field(default_factory=dict)
    sign_in: SignedIn | None = None


def read_private(file: Path) -> bytes | None:
    """Return the content of a file that only its owner can read; None if there is none. Raises CredentialsError."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"{file.name} cannot be read: {error.strerror}", hint=f"ls -l {file}") from error
    try:
        check_private(file, os.fstat(fd))
        return os.read(fd, LARGEST)
    finally:
        os.close(fd)


def check_private(file: Path, facts: os.stat_result) -> None:
    """Raise CredentialsError unless this is a regular file that only its owner can read or write."""
    if not stat.S_ISREG(facts.st_mode):
        raise CredentialsError(f"{file.name} is not a regular file", hint=f"ls -l {file}")
    if facts.st_uid not in (os.geteuid(), 0):
        raise CredentialsError(f"{file.name} belongs to uid {facts.st_uid}", hint=f"chown $USER {file}")
    if facts.st_mode & 0o077:
        raise CredentialsError(
            f"{file.name} has mode {stat.S_IMODE(facts.st_mode):04o}: others can read the keys in it",
            hint=f"chmod 600 {file}",
        )
    if facts.st_size > LARGEST:
        raise CredentialsError(
            f"{file.name} is {facts.st_size} bytes large; the limit is {LARGEST}", hint=f"ls -l {file}"
        )


def parse(file: Path, data: bytes) -> dict[str, Account]:
    """Return the accounts in a keys.toml. Keys outside of accounts are account "". Raises CredentialsError."""
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # The parser's message may quote the line with the key.
        hint = f'a line in {file} looks like this: anthropic = "…"'
        raise CredentialsError(f"{file.name} is not TOML", hint=hint) from None
    named = table.pop("accounts", {})
    if not isinstance(named, dict):
        raise CredentialsError(f"{file.name}: accounts is not a table", hint="[accounts.NAME]")
    found = {"": _account(file, "", table)}
    for name, entries in named.items():
        if not _NAME.match(name) or not isinstance(entries, dict):
            raise CredentialsError(
                f"{file.name} has an invalid account {name[:40]!r}", hint="[accounts.NAME], NAME of a-z, 0-9 and -"
            )
        found[name] = _account(file, f"accounts.{name}.", entries)
    return found


def _account(file: Path, where: str, entries: Mapping[str, object]) -> Account:
    allowed = (*VENDORS, "claude_sign_in", *_ENDPOINTS) if where else VENDORS
    for name, value in entries.items():
        if name not in allowed or not isinstance(value, str):
            raise CredentialsError(
                f"{file.name} has an invalid entry {(where + name)[:80]!r}",
                hint=f"allowed: {', '.join(allowed)}, each a string",
            )
    texts = {name: value.strip() for name, value in entries.items() if isinstance(value, str)}
    keys = {name: Secret(value) for name, value in texts.items() if name in VENDORS}
    place = texts.get("claude_sign_in", "")
    if not place:
        return Account(keys=keys)
    if "anthropic" in keys:
        raise CredentialsError(f"{file.name}: {where}anthropic and {where}claude_sign_in exclude each other")
    endpoints = {name: texts[name] for name in _ENDPOINTS if name in texts}
    _check_endpoints(file, where, endpoints)
    return Account(keys=keys, sign_in=SignedIn(file=_resolve(file, where, place), endpoints=endpoints))


def _resolve(file: Path, where: str, place: str) -> Path:
    """Resolve a path in `file`. Errors do not show it: it may be a key."""
    with contextlib.suppress(RuntimeError):  # ~ of an unknown user
        if "\0" not in place:
            return file.parent / Path(place).expanduser()
    raise CredentialsError(f"{file.name}: {where}claude_sign_in is not a file path", hint="give the absolute path")


def _check_endpoints(file: Path, where: str, endpoints: Mapping[str, str]) -> None:
    try:
        OAuthSettings(**endpoints)  # type: ignore[arg-type]
    except BadSetting as error:
        raise CredentialsError(f"{file.name}: {where}{error.message}") from error
