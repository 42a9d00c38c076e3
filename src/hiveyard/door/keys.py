"""The real keys, which never leave the host: from the daemon's environment, or from a file that only its owner reads.

The file is TOML: `anthropic = "…"`, `openai = "…"`. It is looked at again when it has changed, so that a new key
needs no new daemon. What is set in the environment wins.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import CredentialsError, KeyMissing
from hiveyard.credentials.wellformed import check_key
from hiveyard.kit.secret import Secret

VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_LARGEST = 64 << 10


class _Version(NamedTuple):
    inode: int
    size: int
    changed: int


class Keys:
    """The keys of the vendors, as they are now. `environment` is read once, when it is made."""

    def __init__(self, environment: Mapping[str, str], file: Path | None = None) -> None:
        self._given = {vendor: Secret(environment.get(name, "").strip()) for vendor, name in VARIABLES.items()}
        self._file = file
        self._version: _Version | None = None
        self._stored: dict[str, Secret] = {}

    def find(self, vendor: str) -> Secret:
        """The key for a vendor. Raises KeyMissing, or CredentialsError when the file may not be used."""
        key = self._given[vendor] or self._from_file().get(vendor)
        if not key:
            where = f" and not in {self._file.name}" if self._file else ""  # the guest is told, too: no host path
            raise KeyMissing(
                f"there is no key for {vendor}: {VARIABLES[vendor]} was not set when the daemon started{where}",
                hint=f"hv stop-daemon; {VARIABLES[vendor]}=… hv serve",
            )
        return check_key(vendor, key)

    def known(self) -> tuple[Secret, ...]:
        """All keys at hand, for masking. Never raises."""
        try:
            stored = self._from_file()
        except CredentialsError:
            stored = self._stored
        return tuple({key for key in (*self._given.values(), *stored.values()) if key})

    def _from_file(self) -> dict[str, Secret]:
        if self._file is None:
            return {}
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CredentialsError(f"{self._file} cannot be read: {error.strerror}") from error
        with os.fdopen(fd, "rb") as file:
            facts = os.fstat(fd)
            self._check_file(facts)
            version = _Version(facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if version != self._version:
                self._stored = self._parse(file.read(_LARGEST))
                self._version = version
        return self._stored

    def _check_file(self, facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            raise CredentialsError(f"{self._file} is not a regular file")
        if facts.st_uid not in (os.geteuid(), 0):
            raise CredentialsError(f"{self._file} belongs to uid {facts.st_uid}", hint=f"chown $USER {self._file}")
        if facts.st_mode & 0o077:
            raise CredentialsError(
                f"{self._file} has mode {stat.S_IMODE(facts.st_mode):04o}: others can read the keys in it",
                hint=f"chmod 600 {self._file}",
            )
        if facts.st_size > _LARGEST:
            raise CredentialsError(f"{self._file} is {facts.st_size} bytes large: at most {_LARGEST} are read")

    def _parse(self, data: bytes) -> dict[str, Secret]:
        try:
            table = tomllib.loads(data.decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            # The parser's own words may quote the line with the key.
            raise CredentialsError(
                f"{self._file} is not TOML", hint='a line in it looks like this: anthropic = "…"'
            ) from None
        for name, value in table.items():
            if name not in VARIABLES or not isinstance(value, str):
                raise CredentialsError(
                    f"{self._file} has an entry {name[:40]!r} that is no key",
                    hint=f"it may hold {' and '.join(VARIABLES)}, each a text",
                )
        return {vendor: Secret(value.strip()) for vendor, value in table.items()}
