"""The real keys, which never leave the host: from the daemon's environment, or from a file that only its owner reads.

The file is TOML: `anthropic = "…"`, `openai = "…"`, and accounts with names, each with keys or a sign-in of its own. It
is looked at again when it has changed, so that a new key needs no new daemon. What is set in the environment wins,
except for accounts that were asked for by name.
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
    """The keys of the vendors, as they are now. `environment` is read once, when it is made; `hint` is what to type
    when it lacks a `{variable}`."""

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
        """The key for a vendor; an account has no others than its own. Raises KeyMissing, or CredentialsError when the
        file may not be used."""
        if account:
            stored = self.account(account).keys.get(vendor)
            if not stored:
                raise KeyMissing(f"the account {account} has no key for {vendor}", hint=f"[accounts.{account}]")
            return check_key(vendor, stored)
        key = self._given[vendor] or self.account("").keys.get(vendor)
        if not key:
            where = f" and not in {self._file.name}" if self._file else ""  # the guest is told, too: no host path
            raise KeyMissing(
                f"there is no key for {vendor}: {VARIABLES[vendor]} was not set at the start{where}",
                hint=self._hint.format(variable=VARIABLES[vendor]),
            )
        return check_key(vendor, key)

    def find_any(self, vendors: Sequence[str], account: str = "") -> None:
        """Raises as `find` for the first of the vendors where there is a key, or a sign-in, for none of them."""
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
        """The account called `name`, "" for what has no name. Raises KeyMissing, or CredentialsError."""
        found = self._from_file()
        if name and name not in found:
            raise KeyMissing(f"there is no account {name} in keys.toml", hint=f"[accounts.{name}]")
        return found.get(name, Account())

    def check(self, account: str) -> None:
        """Raises BadInput when there is no such account, or CredentialsError."""
        if not account:
            return
        names = [name for name in self._from_file() if name]
        if account not in names:
            file = self._file.name if self._file else "keys.toml"
            hint = f"accounts: {', '.join(sorted(names))}" if names else f'{file}: [accounts.NAME] anthropic = "…"'
            raise BadInput(f"there is no account {account[:80]!r} in {file}", hint=hint)

    def check_agent(self, account: str, agent: str) -> None:
        """A sign-in is for Claude Code alone, as Anthropic's terms want it. Raises BadInput, CredentialsError."""
        if account and agent != "claude" and self.account(account).sign_in is not None:
            raise BadInput(
                f"the account {account} is a sign-in for Anthropic's own programs only, and the agent is {agent}",
                hint="--agent claude, or an account with an API key",
            )

    def known(self) -> tuple[Secret, ...]:
        """All keys at hand, for masking. Never raises."""
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
    """What tells a changed file from the one that was read; None when that cannot be told."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return _Version(facts.st_ino, facts.st_size, facts.st_ctime_ns)  # a chmod changes the last one, too
