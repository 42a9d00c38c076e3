"""Send requests to Morph Cloud, and convert its errors.

It knows requests and answers, and no machines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import httpx2
import msgspec

from hiveyard.core.errors import (
    KeyMissing,
    ProviderBadAnswer,
    ProviderFailed,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnavailable,
    ProviderUnreachable,
)
from hiveyard.kit import responses, rest
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import decode
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.morph.wire import Complaint

T = TypeVar("T")
_KINDS = responses.Kinds(
    refused=ProviderRefused,
    unauthorized=ProviderUnauthorized,
    not_found=ProviderNotFound,
    rate_limited=ProviderRateLimited,
    failed=ProviderFailed,
    unreachable=ProviderUnreachable,
    timeout=ProviderTimeout,
    bad_answer=ProviderBadAnswer,
)
_SHOWN = 300  # bytes of a complaint that has no form we know


class Client:
    """`key` is called at each request, because the key may change. Call `aclose` at the end."""

    def __init__(self, settings: MorphSettings, key: Callable[[], Secret]) -> None:
        self.answers = responses.Answers("morph", _KINDS, _complaint, key_hint="MORPH_API_KEY=… hv serve")
        limits = rest.Limits(
            request=settings.request_timeout, patience=settings.patience, answer=settings.answer_mib << 20
        )
        self._rest = rest.RestClient(settings.url, self.answers, limits)
        self._key = key

    async def aclose(self) -> None:
        await self._rest.aclose()

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
        attempts: int = rest.ATTEMPTS,
    ) -> T:
        """Return the answer to a request. `again` and the other arguments are those of `RestClient.ask`.

        Raises ProviderRefused (400, 409, 422), ProviderUnauthorized, ProviderNotFound, ProviderRateLimited,
        ProviderFailed (5xx), ProviderUnreachable, ProviderTimeout, ProviderBadAnswer; ProviderUnavailable when there
        is no key.
        """
        return await self._rest.ask(
            method,
            path,
            kind,
            key=self._found(),
            query=query,
            body=body,
            again=again,
            timeout=timeout,
            attempts=attempts,
        )

    def stream(self, path: str, body: object, silence: float) -> AbstractAsyncContextManager[httpx2.Response]:
        """Yield an answer in pieces, with at most `silence` seconds between them. Raises as `ask`."""
        return self._rest.stream(path, body, silence, key=self._found())

    def _found(self) -> Secret:
        try:
            return self._key()
        except KeyMissing as error:
            raise ProviderUnavailable("there is no key for morph", hint=error.hint) from error


def _complaint(status: int, body: bytes) -> responses.ErrorDetail:
    try:
        words = msgspec.json.decode(body, type=Complaint).words()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = decode(body[:_SHOWN])
    return responses.ErrorDetail(status, words)
