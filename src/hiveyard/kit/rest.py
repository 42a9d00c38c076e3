"""Asking a service that speaks JSON over HTTP: one pool of connections, the key added at the last moment, sizes and
times bounded, what may pass tried again.

It knows requests and answers, and not what they are about.
"""

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
_LONGEST_WAIT = 10.0
_COMPLAINT_LIMIT = 64 << 10

Nothing: Any = type(None)
"""The kind of an answer that is not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that one request may take, seconds for which what may pass is tried again, bytes of an answer."""

    request: float = 30.0
    patience: float = 60.0
    answer: int = 16 << 20


class RestClient:
    """The client of the service at `url`. `aclose` at the end."""

    def __init__(self, url: str, answers: Answers, limits: Limits) -> None:
        self.answers = answers
        self._url = url
        self._limits = limits
        self._http: httpx2.AsyncClient | None = None

    async def aclose(self) -> None:
        # Taken out first: who asks meanwhile, or after this was cancelled, gets one that is not closed.
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
        """The answer to a request, as `kind`. One that failed for a reason that may pass is made again, with growing
        pauses or when the service says, unless `again` is false and it may have been done all the same: then its maker
        looks. `key` None: the service asks for none. Raises the errors of `answers.kinds`."""
        doing = f"{method} {path}"
        seconds = timeout or self._limits.request
        async for attempt in stamina.retry_context(
            on=lambda error: self._pause(error, again=again),
            attempts=attempts,
            timeout=self._limits.patience,
            wait_initial=_FIRST_WAIT,
            wait_max=_LONGEST_WAIT,
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
        """An answer that comes in pieces, with at most `silence` seconds between them. Raises as `ask`."""
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
                said = await _beginning(response)
                raise self.answers.refusal(f"{method} {path}", response, said, key)
            yield response
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await response.aclose()

    def _pause(self, error: Exception, *, again: bool) -> bool | float:
        """Whether to try again, or after how many seconds."""
        never_sent = isinstance(error.__cause__, httpx2.ConnectError)
        limited = type(error) is self.answers.kinds.rate_limited  # what was turned away was not done
        if not getattr(error, "retry", False) or not (again or never_sent or limited):
            return False
        if isinstance(wait := getattr(error, "retry_after", None), float):
            # Not all at the same moment.
            return wait + random.random() if wait < self._limits.patience else False  # noqa: S311
        return True

    def _connected(self) -> httpx2.AsyncClient:
        """The client, made when it is first needed: reading the certificate authorities takes a moment."""
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


async def _beginning(response: httpx2.Response) -> bytes:
    """As much of a complaint as is worth reading."""
    said = bytearray()
    async for piece in response.aiter_bytes():
        said += piece[: _COMPLAINT_LIMIT - len(said)]
        if len(said) >= _COMPLAINT_LIMIT:
            break
    return bytes(said)
