"""Answer our own errors in the vendor's format, so that an agent understands them and does not retry in vain."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from hiveyard.core.errors import (
    BadInput,
    BadSignInAnswer,
    BudgetSpent,
    CredentialsError,
    HiveyardError,
    NotOnTape,
    RateLimited,
    SignInRateLimited,
    SignInTimeout,
    SignInUnavailable,
    SignInUnreachable,
    UpstreamFailed,
)
from hiveyard.door.routes import Vendor


class Kind(NamedTuple):
    """The form of an error: its HTTP status, and its type in Anthropic's and OpenAI's lists."""

    status: int
    anthropic: str
    openai: str


# 400 where a retry is useless: agents were seen to retry 401, 429 and 5xx for minutes, but never 400.
_LATER = Kind(502, "api_error", "server_error")
_KINDS: tuple[tuple[type[HiveyardError], Kind], ...] = (
    (BudgetSpent, Kind(400, "invalid_request_error", "insufficient_quota")),
    (NotOnTape, Kind(400, "invalid_request_error", "invalid_request_error")),
    (BadInput, Kind(400, "invalid_request_error", "invalid_request_error")),
    (SignInRateLimited, Kind(429, "rate_limit_error", "rate_limit_error")),
    *((cls, _LATER) for cls in (SignInUnavailable, SignInUnreachable, SignInTimeout, BadSignInAnswer)),
    (CredentialsError, Kind(401, "authentication_error", "authentication_error")),
    (RateLimited, Kind(429, "rate_limit_error", "rate_limit_error")),
    (UpstreamFailed, _LATER),
)
_OTHER = Kind(500, "api_error", "server_error")
_TYPES = {
    400: Kind(400, "invalid_request_error", "invalid_request_error"),
    401: Kind(401, "authentication_error", "authentication_error"),
    404: Kind(404, "not_found_error", "invalid_request_error"),
    405: Kind(405, "invalid_request_error", "invalid_request_error"),
    408: Kind(408, "invalid_request_error", "invalid_request_error"),
    413: Kind(413, "request_too_large", "invalid_request_error"),
    503: Kind(503, "overloaded_error", "server_error"),
}


class LocalReply(NamedTuple):
    """A complete answer of the door itself."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def of_error(vendor: Vendor, error: HiveyardError, request_id: str) -> LocalReply:
    """Return the answer for one of our errors."""
    kind = next((kind for cls, kind in _KINDS if isinstance(error, cls)), _OTHER)
    words = f"{error.message} [{error.code}]"
    return _reply(vendor, kind, words, error.code, request_id, again=error.retry)


def of_status(vendor: Vendor, status: int, words: str, request_id: str) -> LocalReply:
    """Return the answer for an HTTP status, with `words` as its message."""
    kind = _TYPES.get(status, _OTHER)
    return _reply(vendor, kind, words, f"door.{status}", request_id, again=status in (408, 503))


def _reply(vendor: Vendor, kind: Kind, words: str, code: str, request_id: str, *, again: bool) -> LocalReply:
    message = f"Hiveyard: {words}"
    shape: dict[str, object]
    if vendor == "anthropic":
        shape = {"type": "error", "error": {"type": kind.anthropic, "message": message}, "request_id": request_id}
    else:
        shape = {"error": {"message": message, "type": kind.openai, "param": None, "code": code}}
    body = msgspec.json.encode(shape)
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("request-id" if vendor == "anthropic" else "x-request-id", request_id),
        ("x-should-retry", "true" if again else "false"),
    ]
    return LocalReply(kind.status, headers, body)
