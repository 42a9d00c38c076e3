"""The one writer of an account's tokens: in a process, and among all processes of a host that share its lock file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import CredentialsError, HasRetryAfter, KeyMissing
from hiveyard.credentials.claude_oauth import OAuthSettings, Tokens, refresh
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.files import locked
from hiveyard.kit.secret import Secret

Load = Callable[[], Awaitable[Tokens | None]]
"""Gives back what was saved last, by whomever; None when nobody signed in."""
Save = Callable[[Tokens], Awaitable[None]]
"""Keeps tokens; they must be there for every process when it returns. The former ones are worth nothing any more."""

_PAUSE = 0.05
_AGAIN = 30.0
"""Seconds without another try, after one that failed while the token was still good."""


class _Fresh(NamedTuple):
    """What was refreshed last, and how many seconds it was to live: what is stored does not tell."""

    access: Secret
    life: float


class Refresher:
    """Gives out access tokens that are good, for any number of callers at once; refreshes at most once at a time.

    `lock` is a file that all who refresh this account name; it holds no data. Tokens are refreshed when they have less
    than `margin` seconds left; those that live for a short time and were refreshed here, when half of it is over. While
    the sign-in service is in trouble, or where there is no refresh token, they are good as long as they live.
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
        self._mine = anyio.Lock()
        self._known: Tokens | None = None
        self._former: Tokens | None = None
        self._fresh: _Fresh | None = None
        self._unsaved: tuple[Tokens, Tokens] | None = None
        self._not_before = 0.0

    async def tokens(self, *, refused: Secret | None = None) -> Tokens:
        """Tokens that are good now. `refused` is an access token that the vendor did not take though it should not
        have expired: those that are given back are others.

        Raises KeyMissing when nobody signed in; as `claude_oauth.refresh`; and whatever `load` and `save` raise. When
        `save` fails the new tokens are kept here, and saved by the next call."""
        async with self._mine:
            if self._unsaved is None and self._known is not None and self._good(self._known, refused):
                return self._known
            async with _held(self._lock):
                self._known = await self._current(refused)
                return self._known

    @property
    def known(self) -> tuple[Secret, ...]:
        """The secrets at hand, for masking; also those just replaced, which answers on their way may hold."""
        kept = [self._known, self._former, *(self._unsaved or ())]
        return tuple(secret for tokens in kept if tokens is not None for secret in tokens.secrets)

    def _good(self, tokens: Tokens, refused: Secret | None) -> bool:
        now, margin = self._clock.now(), self._margin
        if self._fresh is not None and tokens.access == self._fresh.access:
            margin = min(margin, self._fresh.life / 2)  # else none that lives for less than the margin is ever good
        if tokens.refresh is None or now < self._not_before:
            margin = 0.0
        return tokens.access != refused and not tokens.expired(now, margin=margin)

    async def _current(self, refused: Secret | None) -> Tokens:
        """What another process saved meanwhile, or what comes of refreshing that."""
        stored = await self._load()
        if stored is None:
            raise KeyMissing("nobody signed in to this account", hint="sign in, and save the tokens")
        if self._unsaved is not None:
            former, fresh = self._unsaved
            if stored.refresh == former.refresh:  # else somebody signed in anew: theirs are the good ones
                await self._save(fresh)
                stored = fresh
            self._unsaved = None
        if self._good(stored, refused):
            return stored
        # From the moment in which the old token is sent until the new one is kept, nobody may walk away.
        with anyio.CancelScope(shield=True):
            try:
                fresh = await refresh(self._settings, stored, clock=self._clock)
            except CredentialsError as error:
                if error.retry:
                    wait = (error.retry_after if isinstance(error, HasRetryAfter) else None) or 0.0
                    self._not_before = self._clock.now() + max(_AGAIN, wait)
                if self._good(stored, refused):
                    return stored
                raise
            self._former, self._unsaved = stored, (stored, fresh)
            self._fresh = _Fresh(fresh.access, fresh.expires_at - self._clock.now())
            await self._save(fresh)
            self._unsaved = None
        return fresh


@asynccontextmanager
async def _held(path: Path) -> AsyncIterator[None]:
    """Hold a lock file for as long as the block lasts. Waiting for it can be cancelled."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path, wait=False))
                break
            except BlockingIOError:
                await anyio.sleep(_PAUSE)
        yield
