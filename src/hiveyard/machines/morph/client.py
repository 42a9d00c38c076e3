"""Asking Morph Cloud: one pool of connections, the key added at the last moment, what may pass tried again.

It knows requests and answers, and no machines.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import httpx2
import stamina

from hiveyard.core.errors import (
    HiveyardError,
    KeyMissing,
    ProviderRateLimited,
    ProviderUnavailable,
    ProviderUnreachable,
)
from hiveyard.kit.secret import Secret
from hiveyard.machines.morph import answers
from hiveyard.machines.morph.settings import MorphSettings

T = TypeVar("T")
_POOL = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=20.0)
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 10.0
ATTEMPTS = 8
_COMPLAINT_LIMIT = 64 << 10


class Client:
    """`key` is asked for at each request: it may have changed. `aclose` at the end."""

    def __init__(self, settings: MorphSettings, key: Callable[[], Secret]) -> None:
        self._settings = settings
        self._key = key
        self._http: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        return await self.ask("GET", path, kind, query=query)

    async def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        again: bool = True,
        timeout: float | None = None,
        attempts: int = ATTEMPTS,
    ) -> T:
        """The answer to a request. One that failed for a reason that may pass is made again, with growing pauses or
        when the service says, unless `again` is false and it may have been done all the same: then its maker looks.

        Raises ProviderRefused (400, 409, 422), ProviderUnauthorized, ProviderNotFound, ProviderRateLimited,
        ProviderFailed (5xx), ProviderUnreachable, ProviderTimeout, ProviderBadAnswer; ProviderUnavailable when there
        is no key.
        """
        doing = f"{method} {path}"
        seconds = timeout or self._settings.request_timeout
        async for attempt in stamina.retry_context(
            on=lambda error: self._pause(error, again=again),
            attempts=attempts,
            timeout=self._settings.patience,
            wait_initial=_FIRST_WAIT,
            wait_max=_LONGEST_WAIT,
        ):
            with attempt, answers.translated(doing), anyio.fail_after(seconds):
                async with self._sent(method, path, query, body, seconds) as response:
                    limit = self._settings.answer_mib << 20
                    content = await answers.bounded(doing, response, limit)
                    return answers.parsed(doing, response, content, kind) if kind is not type(None) else None
        raise AssertionError("stamina gives an answer or raises")

    @asynccontextmanager
    async def stream(self, path: str, body: object, silence: float) -> AsyncIterator[httpx2.Response]:
        """An answer that comes in pieces, with at most `silence` seconds between them. Raises as `ask`."""
        with answers.translated(f"POST {path}"):
            async with self._sent("POST", path, None, body, silence) as response:
                yield response

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, query: Mapping[str, str] | None, body: object, silence: float
    ) -> AsyncIterator[httpx2.Response]:
        key = self._revealed()
        request = self._connected().build_request(
            method,
            self._settings.url + path,
            params=dict(query) if query else None,
            json=body,
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(silence, connect=min(silence, self._settings.request_timeout)),
        )
        response = await self._connected().send(request, stream=True)
        try:
            if response.status_code // 100 != 2:
                said = await _beginning(response)
                raise answers.refusal(f"{method} {path}", response, said, key)
            yield response
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await response.aclose()

    def _revealed(self) -> str:
        try:
            return self._key().reveal()
        except KeyMissing as error:
            raise ProviderUnavailable("there is no key for morph", hint=error.hint) from error

    def _pause(self, error: Exception, *, again: bool) -> bool | float:
        """Whether to try again, or after how many seconds."""
        if isinstance(error, ProviderRateLimited):
            if error.retry_after is None:
                return True
            # Not all at the same moment.
            return error.retry_after + random.random() if error.retry_after < self._settings.patience else False  # noqa: S311
        never_sent = isinstance(error, ProviderUnreachable) and isinstance(error.__cause__, httpx2.ConnectError)
        return isinstance(error, HiveyardError) and error.retry and (again or never_sent)

    def _connected(self) -> httpx2.AsyncClient:
        """The client, made when it is first needed: reading the certificate authorities takes a moment."""
        if self._http is None:
            for noisy in ("httpx2", "httpcore2"):
                # At DEBUG these log headers.
                logging.getLogger(noisy).setLevel(logging.WARNING)
            self._http = httpx2.AsyncClient(
                transport=httpx2.AsyncHTTPTransport(limits=_POOL, verify=self._settings.url.startswith("https://")),
                follow_redirects=False,
                headers={"user-agent": "hiveyard", "accept": "application/json, text/event-stream"},
            )
        return self._http


async def _beginning(response: httpx2.Response) -> bytes:
    """As much of a complaint as is worth reading."""
    said = bytearray()
    async for piece in response.aiter_bytes():
        said += piece[: _COMPLAINT_LIMIT - len(said)]
        if len(said) >= _COMPLAINT_LIMIT:
            break
    return bytes(said)


Nothing: Any = type(None)
"""The kind of an answer that is not looked at."""
