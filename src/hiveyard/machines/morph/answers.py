"""What comes back from Morph Cloud, believed only after a look: sizes bounded, shapes checked, failures told apart.

Nothing here names the key; what the service says is cut, cleaned and searched for it before it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
import msgspec

from hiveyard.core.errors import (
    ProviderBadAnswer,
    ProviderError,
    ProviderFailed,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnreachable,
)
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.morph.wire import Complaint

T = TypeVar("T")
_KEY_HINT = "MORPH_API_KEY=… hv serve"
_SHOWN = 300


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns the client's errors into ours."""
    try:
        yield
    except (httpx2.TimeoutException, TimeoutError) as error:
        raise ProviderTimeout(f"morph: {doing}: no answer in time ({type(error).__name__})") from error
    except httpx2.SSEError as error:
        raise ProviderBadAnswer(f"morph: {doing}: {one_line(str(error), _SHOWN)}") from error
    except httpx2.RemoteProtocolError as error:
        raise ProviderUnreachable(f"morph: {doing}: the answer was cut: {one_line(str(error), _SHOWN)}") from error
    except httpx2.HTTPError as error:
        why = one_line(str(error), _SHOWN) or type(error).__name__
        raise ProviderUnreachable(f"morph: {doing}: no connection: {why}") from error


def parsed(doing: str, response: httpx2.Response, body: bytes, kind: type[T]) -> T:
    """The body as `kind`. Raises ProviderBadAnswer."""
    media = response.headers.get("content-type", "")
    if "json" not in media:
        raise ProviderBadAnswer(f"morph: {doing}: the answer is {one_line(media, 60) or 'of no kind'}, not JSON")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProviderBadAnswer(f"morph: {doing}: the answer is not what it should be: {error}") from error


async def bounded(doing: str, response: httpx2.Response, limit: int) -> bytes:
    """The whole body. Raises ProviderBadAnswer when it has more than `limit` bytes."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            raise ProviderBadAnswer(f"morph: {doing}: the answer has more than {limit} bytes")
    return bytes(body)


def refusal(doing: str, response: httpx2.Response, body: bytes, key: str) -> ProviderError:
    """The error that an answer other than 2xx stands for."""
    status = response.status_code
    said = one_line(_words(response, body).replace(key, "***"), _SHOWN)
    told = f"morph: {doing}: {status}{': ' if said else ''}{said}"
    if status in (401, 403):
        return ProviderUnauthorized(told, hint=_KEY_HINT)
    if status == 404:
        return ProviderNotFound(told)
    if status == 429:
        return ProviderRateLimited(told, retry_after=_retry_after(response))
    if status >= 500:
        return ProviderFailed(told)
    if status < 400:
        return ProviderBadAnswer(f"{told}: a redirect; it is not followed, since the key goes to one address only")
    return ProviderRefused(told)


def _words(response: httpx2.Response, body: bytes) -> str:
    """Why, if it says so in JSON: a page of HTML tells nobody anything."""
    if "json" in response.headers.get("content-type", ""):
        try:
            return msgspec.json.decode(body, type=Complaint).words()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return decode(body[:_SHOWN])
    return ""


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds, from a number of them or from a date."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdigit():
        return float(said[:9])
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
