"""Send one request to a token endpoint, with a distinct error for each kind of failure, and without a secret in it.

Errors are raised without a cause: the HTTP client's errors have the request, and the request has the secrets.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import anyio
import httpx2
import msgspec

from hiveyard.core.errors import (
    BadSetting,
    BadSignInAnswer,
    CredentialsError,
    SignInNotFound,
    SignInRateLimited,
    SignInRefused,
    SignInTimeout,
    SignInUnauthorized,
    SignInUnavailable,
    SignInUnreachable,
)
from hiveyard.kit.mask import Mask
from hiveyard.kit.responses import retry_after
from hiveyard.kit.secret import Secret
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import one_line

_LARGEST = 256 << 10


class Endpoint(Protocol):
    """The settings of a token endpoint."""

    @property
    def token_url(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def proxy(self) -> str: ...
    @property
    def ca_file(self) -> str: ...


class _Answer(NamedTuple):
    status: int
    kind: str
    retry_after: str
    body: bytes


async def ask(endpoint: Endpoint, body: Mapping[str, str], secrets: Sequence[Secret]) -> Mapping[str, object]:
    """Return the JSON object that the endpoint answers with 200. `secrets` are those in `body`.

    Raises the errors of `claude_oauth.refresh`."""
    host = urlsplit(endpoint.token_url).netloc
    answer = await _answer(endpoint, body, host)
    if isinstance(answer, CredentialsError):
        raise answer
    found = _object(answer.body)
    if answer.status != 200:
        raise _refusal(answer, found, host, Mask(secrets))
    if found is None:
        shown = one_line(answer.kind, 60) or "no content type"
        raise BadSignInAnswer(f"{host} answered 200 without a JSON object: {len(answer.body)} bytes of {shown}")
    return found


async def _answer(endpoint: Endpoint, body: Mapping[str, str], host: str) -> _Answer | CredentialsError:
    """Return the answer or the error. The error is returned, so that it has no cause when it is raised."""
    try:
        # The client limits each wait, not their sum: one byte a second would never end.
        with anyio.fail_after(endpoint.seconds):
            async with _client(endpoint) as client, client.stream("POST", endpoint.token_url, json=body) as response:
                return await _read(response, host)
    except (TimeoutError, httpx2.TimeoutException):
        return SignInTimeout(f"{host} did not answer within {endpoint.seconds:g}s")
    except httpx2.RemoteProtocolError:
        return BadSignInAnswer(f"{host} cut its answer, or did not answer with HTTP")
    except httpx2.HTTPError as error:
        return SignInUnreachable(f"{host} cannot be reached: {one_line(str(error)) or type(error).__name__}")


def _client(endpoint: Endpoint) -> httpx2.AsyncClient:
    verify: ssl.SSLContext | bool = endpoint.token_url.startswith("https:")
    if endpoint.ca_file:
        try:
            verify = ssl.create_default_context(cafile=endpoint.ca_file)
        except OSError as error:
            raise BadSetting(f"ca_file {endpoint.ca_file} cannot be used: {error}") from error
    return httpx2.AsyncClient(
        trust_env=False,
        verify=verify,
        proxy=endpoint.proxy or None,
        timeout=endpoint.seconds,
        follow_redirects=False,
        headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "hiveyard"},
    )


async def _read(response: httpx2.Response, host: str) -> _Answer | CredentialsError:
    if response.headers.get("content-encoding", "identity") != "identity":
        return BadSignInAnswer(f"{host} answered {response.status_code} with compression, which was not requested")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _LARGEST:
            return BadSignInAnswer(f"{host} answered {response.status_code} with more than {_LARGEST} bytes")
    kind, again = (response.headers.get(name, "") for name in ("content-type", "retry-after"))
    return _Answer(response.status_code, kind, again, bytes(body))


def _object(body: bytes) -> Mapping[str, object] | None:
    with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        found = msgspec.json.decode(body)
        return found if isinstance(found, dict) else None
    return None


def _refusal(answer: _Answer, answered: Mapping[str, object] | None, host: str, mask: Mask) -> CredentialsError:
    status = answer.status
    words = f"{host} answered {status}{one_line(mask.text(_words(answered)), 300)}"
    context = {"status": str(status), "operation": "sign_in"}
    if status == 429:
        wait = retry_after(answer.retry_after)
        hint = "" if wait is None else f"retry in {wait:.0f} s"
        return SignInRateLimited(words, hint=hint, retry_after=wait, **context)
    if status >= 500:
        return SignInUnavailable(words, **context)
    if status in (401, 403):
        return SignInUnauthorized(words, hint="check client_id, and sign in again", **context)
    if status == 404:
        return SignInNotFound(words, hint="check token_url", **context)
    if 400 <= status < 500:
        return SignInRefused(words, hint="sign in again", **context)
    return BadSignInAnswer(f"{words}, which is neither a token nor a refusal", **context)


def _words(answered: Mapping[str, object] | None) -> str:
    """Return the endpoint's error message: OAuth's two fields, or Anthropic's error object. Others are ignored."""
    if answered is None:
        return ""
    nested = record(answered, "error")
    short = text(nested.get("type")) or text(answered.get("error"))
    long = text(nested.get("message")) or text(answered.get("error_description"))
    return "".join(f": {words}" for words in (short, long) if words)
