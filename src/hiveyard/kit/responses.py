"""What comes back from a service on the internet, believed only after a look: sizes bounded, shapes checked, failures
told apart.

Nothing here names a key; what a service says is cut, cleaned and searched for it before it is repeated.
"""

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
"""A class of errors, made with a message and perhaps `hint=`."""
_SHOWN = 300
_LONGEST_WAIT = 366 * 86_400.0


class Kinds(NamedTuple):
    """The errors that a service's failures become: the request itself was wrong (400, 409, 422 and other 4xx); 401 and
    403; 404; 429 and 5xx, made with `retry_after=` too; no connection, or a cut one; no answer in time; an answer
    that is none."""

    refused: Kind
    unauthorized: Kind
    not_found: Kind
    rate_limited: Kind
    failed: Kind
    unreachable: Kind
    timeout: Kind
    bad_answer: Kind


class Complaint(NamedTuple):
    """What a service complains of: the status that it amounts to, and why in words, which may be none."""

    status: int
    words: str


Reading = Callable[[int, bytes], Complaint]
"""Reads the JSON body of an error. It may be anything, and is never an error of its own."""


class Answers:
    """`name` is the service's, with which all messages begin. `key_hint` says where its key is set."""

    def __init__(self, name: str, kinds: Kinds, reading: Reading, *, key_hint: str = "") -> None:
        self.kinds = kinds
        self._name = name
        self._reading = reading
        self._key_hint = key_hint

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Turns the HTTP client's errors into ours."""
        try:
            yield
        except (httpx2.TimeoutException, TimeoutError) as error:
            raise self.kinds.timeout(self._told(doing, f"no answer in time ({type(error).__name__})")) from error
        except httpx2.SSEError as error:
            raise self.kinds.bad_answer(self._told(doing, one_line(str(error), _SHOWN))) from error
        except httpx2.DecodingError as error:
            raise self.kinds.bad_answer(self._told(doing, "the answer is not compressed as it says")) from error
        except httpx2.RemoteProtocolError as error:
            why = f"the answer was cut: {one_line(str(error), _SHOWN)}"
            raise self.kinds.unreachable(self._told(doing, why)) from error
        except httpx2.HTTPError as error:
            why = f"no connection: {one_line(str(error), _SHOWN) or type(error).__name__}"
            raise self.kinds.unreachable(self._told(doing, why)) from error

    def parsed(self, doing: str, response: httpx2.Response, body: bytes, kind: type[T]) -> T:
        """The body as `kind`. Raises the error for an answer that is none."""
        media = response.headers.get("content-type", "")
        if "json" not in media:
            why = f"the answer is {one_line(media, 60) or 'of no kind'}, not JSON"
            raise self.kinds.bad_answer(self._told(doing, why))
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self.kinds.bad_answer(self._told(doing, f"the answer is not what it should be: {error}")) from error

    async def bounded(self, doing: str, response: httpx2.Response, limit: int) -> bytes:
        """The whole body. Raises the error for an answer that is none when it has more than `limit` bytes."""
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > limit:
                raise self.kinds.bad_answer(self._told(doing, f"the answer has more than {limit} bytes"))
        return bytes(body)

    def refusal(self, doing: str, response: httpx2.Response, body: bytes, key: Secret | None) -> Exception:
        """The error that an answer other than 2xx stands for."""
        complaint = self._complaint(response, body)
        said = one_line(_masked(complaint.words, key), _SHOWN)
        told = self._told(doing, f"{response.status_code}{': ' if said else ''}{said}")
        status, kinds = complaint.status, self.kinds
        if status in (401, 403):
            return kinds.unauthorized(told, hint=self._key_hint)
        if status == 404:
            return kinds.not_found(told)
        if status == 429 or status >= 500:
            kind = kinds.rate_limited if status == 429 else kinds.failed
            return kind(told, retry_after=retry_after(response.headers.get("retry-after", "")))
        if status < 400:
            return kinds.bad_answer(f"{told}: a redirect; it is not followed, since the key goes to one address only")
        return kinds.refused(told)

    def _complaint(self, response: httpx2.Response, body: bytes) -> Complaint:
        """Why, if it says so in JSON: a page of HTML tells nobody anything."""
        if "json" not in response.headers.get("content-type", ""):
            return Complaint(response.status_code, "")
        return self._reading(response.status_code, body)

    def _told(self, doing: str, what: str) -> str:
        return f"{self._name}: {doing}: {what}"


def retry_after(told: str) -> float | None:
    """A `retry-after` in seconds, from a number or a date; None when it is neither, or absurd."""
    try:
        wait = float(told)
    except ValueError:
        try:
            when = parsedate_to_datetime(told)
        except (ValueError, TypeError, OverflowError):
            return None
        wait = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, wait) if wait < _LONGEST_WAIT else None


def _masked(words: str, key: Secret | None) -> str:
    if key is None:
        return words
    # As many stars as the key has letters would tell how many those are.
    return re.sub(r"\*{4,}", "***", Mask([key]).text(words))
