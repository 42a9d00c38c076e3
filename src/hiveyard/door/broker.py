"""Provide the credential for a request of an account, and refresh it if it expires. All doors share one broker.

Guests that share an account share its one Refresher. Its lock file excludes other processes of this host.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import anyio.to_thread

from hiveyard.core.errors import CredentialsError
from hiveyard.credentials.claude_oauth import OAuthSettings, Tokens, tokens_of_file
from hiveyard.credentials.refresher import Refresher
from hiveyard.door.key_file import SignedIn, read_private
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.clock import Clock
from hiveyard.kit.files import write_atomic
from hiveyard.kit.secret import Secret


class Credential(NamedTuple):
    """The credential of a request. If it `expires` and the vendor refuses it, the vendor may accept the next one."""

    secret: Secret
    expires: bool = False


class Broker:
    """A provider of accounts' credentials, for any number of callers at once."""

    def __init__(self, keys: Keys, settings: DoorSettings, clock: Clock) -> None:
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._refreshers: dict[str, tuple[SignedIn, Refresher]] = {}

    async def credential(self, vendor: str, account: str, *, refused: Secret | None = None) -> Credential:
        """Return an account's current credential for a vendor; not `refused`, which the vendor did not accept.

        Raises KeyMissing, CredentialsError, and as `claude_oauth.refresh`."""
        sign_in = self._keys.account(account).sign_in if account and vendor == "anthropic" else None
        if sign_in is None:
            return Credential(self._keys.find(vendor, account))
        tokens = await self._refresher(account, sign_in).tokens(refused=refused)
        return Credential(tokens.access, expires=True)

    def known(self) -> tuple[Secret, ...]:
        """Return all known secrets, for masking. Never raises."""
        return (*self._keys.known(), *(one for _, refresher in self._refreshers.values() for one in refresher.known))

    def _refresher(self, account: str, sign_in: SignedIn) -> Refresher:
        """Return the account's refresher. It is replaced when the account changes in keys.toml."""
        kept = self._refreshers.get(account)
        if kept is None or kept[0] != sign_in:
            kept = self._refreshers[account] = (sign_in, self._new_refresher(sign_in))
        return kept[1]

    def _new_refresher(self, sign_in: SignedIn) -> Refresher:
        here = self._settings
        settings = OAuthSettings(**sign_in.endpoints, proxy=here.proxy, ca_file=here.ca_file)  # type: ignore[arg-type]

        async def load() -> Tokens | None:
            return await anyio.to_thread.run_sync(_load, sign_in.file)

        async def save(tokens: Tokens) -> None:
            await anyio.to_thread.run_sync(_save, sign_in.file, tokens)

        lock = sign_in.file.with_name(f"{sign_in.file.name}.lock")
        return Refresher(settings, load, save, lock=lock, clock=self._clock)


def _load(file: Path) -> Tokens | None:
    content = _content(file)
    return None if content is None else tokens_of_file(content)


def _content(file: Path) -> Secret | None:
    data = read_private(file)
    return None if data is None else Secret(data.decode("utf-8", "replace"))


def _save(file: Path, tokens: Tokens) -> None:
    """Replace the tokens in the file. Claude Code keeps more in it, such as the sign-ins of MCP servers."""
    try:
        write_atomic(file, tokens.file(_content(file)).reveal().encode(), mode=0o600)
    except OSError as error:
        raise CredentialsError(f"refreshed tokens cannot be saved: {file.name}: {error.strerror}") from error
