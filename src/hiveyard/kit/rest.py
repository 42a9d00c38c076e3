"""A client for JSON over HTTP: a connection pool, limited sizes and times, retries.

The key is added at the last moment. The client does not know the meaning of requests and answers."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import httpx2
import stamina

from hiveyard.kit.responses import Answers
from hiveyard.kit.secret import Secret

T = TypeVar("T")
ATTEMPTS = 8
_POOL = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=20.0)
_FIRST_WAIT = 0.5
_MAX_WAIT = 10.0
_ERROR_LIMIT = 64 << 10

Nothing: Any = type(None)
"""The `kind` for an answer that is ignored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The timeout of a request in seconds, the time for retries in seconds, and the largest answer in bytes."""

    request: float = 30.0
    patience: float = 60.0
    answer: int = 16 << 20


class RestClient:
    """A client of the service at `url`. Call `aclose` at the end."""

    def __init__(self, url: str, answers: Answers, limits: Limits) -> None:
        self.answers = answers
        self._url = url
        self._limits = limits
        self._http: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        # Removed first: a request during the close, or after a cancelled close, then gets a new client.
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        key: Secret | None,
        query: Mapping[str, str] | None = None,
        body: object = None,
        again: bool = True,
        timeout: float | None = None,
        attempts: int = ATTEMPTS,
    ) -> T:
        """Send a request and return the answer as `kind`.

        A request that failed for a temporary reason is retried, with growing pauses or when the service says. With
        `again` false it is not retried if the service may have executed it; the caller then checks. `key` None sends no
        key. Raises the errors of `answers.kinds`."""
        doing = f"{method} {path}"
        seconds = timeout or self._limits.request
        async for attempt in stamina.retry_context(
            on=lambda error: self._pause(error, again=again),
            attempts=attempts,
            timeout=self._limits.patience,
            wait_initial=_FIRST_WAIT,
            wait_max=_MAX_WAIT,
        ):
            with attempt, self.answers.translated(doing), anyio.fail_after(seconds):
                async with self._sent(method, path, key, query, body, seconds) as response:
                    content = await self.answers.bounded(doing, response, self._limits.answer)
                    if kind is Nothing:
                        return None  # type: ignore[return-value]
                    return self.answers.parsed(doing, response, content, kind)
        raise AssertionError("stamina gives an answer or raises")

    @asynccontextmanager
    async def stream(self, path: str, body: object, silence: float, *, key: Secret) -> AsyncIterator[httpx2.Response]:
        """Send a request and return its answer as a stream, with at most `silence` seconds between two pieces.

        Raises the errors of `answers.kinds`."""
        with self.answers.translated(f"POST {path}"):
            async with self._sent("POST", path, key, None, body, silence) as response:
                yield response

    @asynccontextmanager
    async def _sent(
        self,
        method: str,
        path: str,
        key: Secret | None,
        query: Mapping[str, str] | None,
        body: object,
        silence: float,
    ) -> AsyncIterator[httpx2.Response]:
        request = self._connected().build_request(
            method,
            self._url + path,
            params=dict(query) if query else None,
            json=body,
            headers={} if key is None else {"authorization": f"Bearer {key.reveal()}"},
            timeout=httpx2.Timeout(silence, connect=min(silence, self._limits.request)),
        )
        response = await self._connected().send(request, stream=True)
        try:
            if response.status_code // 100 != 2:
                body = await _read_error(response)
                raise self.answers.refusal(f"{method} {path}", response, body, key)
            yield response
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await response.aclose()

    def _pause(self, error: Exception, *, again: bool) -> bool | float:
        """Return whether to retry, or after how many seconds."""
        never_sent = isinstance(error.__cause__, httpx2.ConnectError)
        limited = type(error) is self.answers.kinds.rate_limited  # a rejected request was not executed
        if not getattr(error, "retry", False) or not (again or never_sent or limited):
            return False
        if isinstance(wait := getattr(error, "retry_after", None), float):
            # Random, so that not all clients retry at the same moment.
            return wait + random.random() if wait < self._limits.patience else False  # noqa: S311
        return True

    def _connected(self) -> httpx2.AsyncClient:
        """Return the client, made at its first use: reading the certificate authorities takes a moment."""
        if self._http is None:
            for noisy in ("httpx2", "httpcore2"):
                # At DEBUG these log headers.
                logging.getLogger(noisy).setLevel(logging.WARNING)
            self._http = httpx2.AsyncClient(
                transport=httpx2.AsyncHTTPTransport(limits=_POOL, verify=self._url.startswith("https://")),
                follow_redirects=False,
                headers={"user-agent": "hiveyard", "accept": "application/json, text/event-stream"},
            )
        return self._http


async def _read_error(response: httpx2.Response) -> bytes:
    """Return the beginning of the body of an error response."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece[: _ERROR_LIMIT - len(body)]
        if len(body) >= _ERROR_LIMIT:
            break
    return bytes(body)
