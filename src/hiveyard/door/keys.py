"""Read the real keys, which never leave the host, from the daemon's environment or from a file that only its owner
reads.

The file is TOML: `anthropic = "…"`, `openai = "…"`, and accounts with names, each with its own keys or sign-in. It is
read again when it has changed, so a new key needs no restart of the daemon. The environment takes precedence, except
over an account that is requested by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import BadInput, CredentialsError, KeyMissing
from hiveyard.credentials.format import check_key
from hiveyard.door.key_file import Account, parse, read_private
from hiveyard.kit.secret import Secret

VARIABLES = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "morph": "MORPH_API_KEY"}


class _Version(NamedTuple):
    inode: int
    size: int
    changed: int


class Keys:
    """The current keys of the vendors. `environment` is read once, at creation. `hint` is the command to paste if it
    lacks a `{variable}`."""

    def __init__(
        self,
        environment: Mapping[str, str],
        file: Path | None = None,
        *,
        hint: str = "hv stop-daemon; {variable}=… hv serve",
    ) -> None:
        self._given = {vendor: Secret(environment.get(name, "").strip()) for vendor, name in VARIABLES.items()}
        self._file = file
        self._hint = hint
        self._version: _Version | None = None
        self._stored: dict[str, Account] = {}

    def find(self, vendor: str, account: str = "") -> Secret:
        """Return the key for a vendor. A named account has only its own keys. Raises KeyMissing; CredentialsError if
        the file cannot be used."""
        if account:
            stored = self.account(account).keys.get(vendor)
            if not stored:
                raise KeyMissing(f"the account {account} has no key for {vendor}", hint=f"[accounts.{account}]")
            return check_key(vendor, stored)
        key = self._given[vendor] or self.account("").keys.get(vendor)
        if not key:
            where = f" and not in {self._file.name}" if self._file else ""  # the guest sees the message: no host path
            raise KeyMissing(
                f"there is no key for {vendor}: {VARIABLES[vendor]} was not set at start{where}",
                hint=self._hint.format(variable=VARIABLES[vendor]),
            )
        return check_key(vendor, key)

    def find_any(self, vendors: Sequence[str], account: str = "") -> None:
        """Raise as `find` for the first of the vendors if none of them has a key or a sign-in."""
        missing: CredentialsError | None = None
        for vendor in vendors:
            try:
                if vendor != "anthropic" or not account or self.account(account).sign_in is None:
                    self.find(vendor, account)
                return
            except CredentialsError as error:
                missing = missing or error
        if missing is not None:
            raise missing

    def account(self, name: str) -> Account:
        """Return the account `name`; "" is the one without a name. Raises KeyMissing, CredentialsError."""
        found = self._from_file()
        if name and name not in found:
            raise KeyMissing(f"there is no account {name} in keys.toml", hint=f"[accounts.{name}]")
        return found.get(name, Account())

    def check(self, account: str) -> None:
        """Raise BadInput if there is no such account, or CredentialsError."""
        if not account:
            return
        names = [name for name in self._from_file() if name]
        if account not in names:
            file = self._file.name if self._file else "keys.toml"
            hint = f"accounts: {', '.join(sorted(names))}" if names else f'{file}: [accounts.NAME] anthropic = "…"'
            raise BadInput(f"there is no account {account[:80]!r} in {file}", hint=hint)

    def check_agent(self, account: str, agent: str) -> None:
        """Raise BadInput for a sign-in with another agent than Claude Code: Anthropic's terms forbid it.

        Raises CredentialsError, too."""
        if account and agent != "claude" and self.account(account).sign_in is not None:
            raise BadInput(
                f"the account {account} is a sign-in for Anthropic's own programs only, and the agent is {agent}",
                hint="--agent claude, or an account with an API key",
            )

    def known(self) -> tuple[Secret, ...]:
        """Return all known keys, for masking. Never raises."""
        try:
            stored = self._from_file()
        except CredentialsError:
            stored = self._stored
        found = [*self._given.values(), *(key for account in stored.values() for key in account.keys.values())]
        return tuple({key for key in found if key})

    def _from_file(self) -> dict[str, Account]:
        if self._file is None:
            return {}
        version = _version(self._file)
        if version is None or version != self._version:
            data = read_private(self._file)
            self._stored = {} if data is None else parse(self._file, data)
            self._version = version
        return self._stored


def _version(file: Path) -> _Version | None:
    """Return a value that changes with the file; None if the file cannot be inspected."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return _Version(facts.st_ino, facts.st_size, facts.st_ctime_ns)  # chmod changes st_ctime_ns, too
