"""Check answers of internet services: limited sizes, validated schemas, distinct errors.

No message contains a key. Texts from a service are cut, cleaned and searched for the key before they are used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

import httpx2
import msgspec

from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import one_line

T = TypeVar("T")
Kind = Callable[..., Exception]
"""An error class that is called with a message and optionally `hint=`."""
_SHOWN = 300
_MAX_WAIT = 366 * 86_400.0


class Kinds(NamedTuple):
    """The error classes for the failures of a service.

    `refused`: the request itself is wrong (400, 409, 422 and other 4xx). `unauthorized`: 401 and 403. `not_found`: 404.
    `rate_limited` and `failed`: 429 and 5xx, also called with `retry_after=`. `unreachable`: no connection, or a broken
    one. `timeout`: no answer in time. `bad_answer`: an invalid answer."""

    refused: Kind
    unauthorized: Kind
    not_found: Kind
    rate_limited: Kind
    failed: Kind
    unreachable: Kind
    timeout: Kind
    bad_answer: Kind


class ErrorDetail(NamedTuple):
    """The error that a service reports: the HTTP status that it amounts to, and a message, which may be empty."""

    status: int
    words: str


ErrorReader = Callable[[int, bytes], ErrorDetail]
"""Reads the JSON body of an error response. The body is untrusted; the function never raises."""


class Answers:
    """Converts the answers of one service into values and errors.

    `name` is the service's name, with which all messages begin. `key_hint` says where its key is set."""

    def __init__(self, name: str, kinds: Kinds, read_error: ErrorReader, *, key_hint: str = "") -> None:
        self.kinds = kinds
        self._name = name
        self._read_error = read_error
        self._key_hint = key_hint

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Convert errors of the HTTP client into ours."""
        try:
            yield
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise self.kinds.timeout(self._message(doing, f"no answer in time ({type(error).__name__})")) from error
        except httpx2.SSEError as error:
            raise self.kinds.bad_answer(self._message(doing, one_line(str(error), _SHOWN))) from error
        except httpx2.DecodingError as error:
            raise self.kinds.bad_answer(self._message(doing, "the answer's compression is invalid")) from error
        except httpx2.RemoteProtocolError as error:
            why = f"the answer was cut: {one_line(str(error), _SHOWN)}"
            raise self.kinds.unreachable(self._message(doing, why)) from error
        except httpx2.HTTPError as error:
            why = f"no connection: {one_line(str(error), _SHOWN) or type(error).__name__}"
            raise self.kinds.unreachable(self._message(doing, why)) from error

    def parsed(self, doing: str, response: httpx2.Response, body: bytes, kind: type[T]) -> T:
        """Return the body as `kind`. Raises `bad_answer` if it is not valid."""
        media = response.headers.get("content-type", "")
        if "json" not in media:
            why = f"the answer is {one_line(media, 60) or 'of unknown type'}, not JSON"
            raise self.kinds.bad_answer(self._message(doing, why))
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.kinds.bad_answer(self._message(doing, f"the answer is invalid: {error}")) from error

    async def bounded(self, doing: str, response: httpx2.Response, limit: int) -> bytes:
        """Return the complete body. Raises `bad_answer` if it has more than `limit` bytes."""
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > limit:
                raise self.kinds.bad_answer(self._message(doing, f"the answer has more than {limit} bytes"))
        return bytes(body)

    def refusal(self, doing: str, response: httpx2.Response, body: bytes, key: Secret | None) -> Exception:
        """Return the error for an answer other than 2xx."""
        detail = self._detail(response, body)
        words = one_line(_masked(detail.words, key), _SHOWN)
        message = self._message(doing, f"{response.status_code}{': ' if words else ''}{words}")
        status, kinds = detail.status, self.kinds
        if status in (401, 403):
            return kinds.unauthorized(message, hint=self._key_hint)
        if status == 404:
            return kinds.not_found(message)
        if status == 429 or status >= 500:
            kind = kinds.rate_limited if status == 429 else kinds.failed
            return kind(message, retry_after=retry_after(response.headers.get("retry-after", "")))
        if status < 400:
            return kinds.bad_answer(
                f"{message}: redirects are not followed, because the key is sent to one address only"
            )
        return kinds.refused(message)

    def _detail(self, response: httpx2.Response, body: bytes) -> ErrorDetail:
        """Return the reported error if the body is JSON. A page of HTML does not help a reader."""
        if "json" not in response.headers.get("content-type", ""):
            return ErrorDetail(response.status_code, "")
        return self._read_error(response.status_code, body)

    def _message(self, doing: str, what: str) -> str:
        return f"{self._name}: {doing}: {what}"


def retry_after(header: str) -> float | None:
    """Return a `retry-after` header in seconds. It is a number or a date; None if it is neither, or far too long."""
    try:
        wait = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, TypeError, OverflowError):
            return None
        wait = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait) if wait < _MAX_WAIT else None


def _masked(words: str, key: Secret | None) -> str:
    if key is None:
        return words
    # As many stars as the key has characters would reveal its length.
    return re.sub(r"\*{4,}", "***", Mask([key]).text(words))
