"""Refresh an account's tokens, with one writer among all processes of a host that share its lock file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import CredentialsError, HasRetryAfter, KeyMissing
from hiveyard.credentials.claude_oauth import OAuthSettings, Tokens, refresh
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.lock import file_lock
from hiveyard.kit.secret import Secret

Load = Callable[[], Awaitable[Tokens | None]]
"""Return the tokens saved last by any process; None if there is no sign-in."""
Save = Callable[[Tokens], Awaitable[None]]
"""Save tokens. On return every process must be able to load them. The previous ones are no longer valid."""

_RETRY_SECONDS = 30.0
"""Seconds until the next attempt, after one that failed while the token was still valid."""


class _Fresh(NamedTuple):
    """The token refreshed last, and its lifetime in seconds, which is not stored with it."""

    access: Secret
    life: float


class Refresher:
    """A source of valid access tokens for any number of callers at once. It runs at most one refresh at a time.

    `lock` is a file shared by all processes that refresh this account; it has no data. Tokens are refreshed when they
    have less than `margin` seconds left. Tokens with a short lifetime that were refreshed here are refreshed after half
    of it. While the sign-in service fails, or without a refresh token, tokens are used until they expire.
    """

    def __init__(
        self,
        settings: OAuthSettings,
        load: Load,
        save: Save,
        *,
        lock: Path,
        margin: float = 300.0,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._save = save
        self._lock = lock
        self._margin = margin
        self._clock = clock or SystemClock()
        self._local_lock = anyio.Lock()
        self._known: Tokens | None = None
        self._former: Tokens | None = None
        self._fresh: _Fresh | None = None
        self._unsaved: tuple[Tokens, Tokens] | None = None
        self._not_before = 0.0

    async def tokens(self, *, refused: Secret | None = None) -> Tokens:
        """Return valid tokens. `refused` is an access token that the vendor did not accept before its expiry; it is not
        returned.

        Raises KeyMissing if there is no sign-in; as `claude_oauth.refresh`; and what `load` and `save` raise. If `save`
        fails, the new tokens are kept in memory and saved by the next call."""
        async with self._local_lock:
            if self._unsaved is None and self._known is not None and self._is_valid(self._known, refused):
                return self._known
            async with file_lock(self._lock):
                self._known = await self._current(refused)
                return self._known

    @property
    def known(self) -> tuple[Secret, ...]:
        """Return all known secrets, for masking; also the replaced ones, which running answers may contain."""
        kept = [self._known, self._former, *(self._unsaved or ())]
        return tuple(secret for tokens in kept if tokens is not None for secret in tokens.secrets)

    def _is_valid(self, tokens: Tokens, refused: Secret | None) -> bool:
        now, margin = self._clock.now(), self._margin
        if self._fresh is not None and tokens.access == self._fresh.access:
            margin = min(
                margin, self._fresh.life / 2
            )  # else a token with a lifetime under the margin would never be valid
        if tokens.refresh is None or now < self._not_before:
            margin = 0.0
        return tokens.access != refused and not tokens.expired(now, margin=margin)

    async def _current(self, refused: Secret | None) -> Tokens:
        """Return the tokens that another process saved meanwhile, or refresh the stored ones."""
        stored = await self._load()
        if stored is None:
            raise KeyMissing("this account has no sign-in", hint="sign in, and save the tokens")
        if self._unsaved is not None:
            former, fresh = self._unsaved
            if stored.refresh == former.refresh:  # else there was a new sign-in, whose tokens are valid
                await self._save(fresh)
                stored = fresh
            self._unsaved = None
        if self._is_valid(stored, refused):
            return stored
        # Shielded from the moment the old token is sent until the new one is saved.
        with anyio.CancelScope(shield=True):
            try:
                fresh = await refresh(self._settings, stored, clock=self._clock)
            except CredentialsError as error:
                if error.retry:
                    wait = (error.retry_after if isinstance(error, HasRetryAfter) else None) or 0.0
                    self._not_before = self._clock.now() + max(_RETRY_SECONDS, wait)
                if self._is_valid(stored, refused):
                    return stored
                raise
            self._former, self._unsaved = stored, (stored, fresh)
            self._fresh = _Fresh(fresh.access, fresh.expires_at - self._clock.now())
            await self._save(fresh)
            self._unsaved = None
        return fresh
