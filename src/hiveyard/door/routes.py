"""The allow-list of methods, paths and headers of a guest's requests. Everything else is refused.

Paths are compared before any decoding, so that no encoding of `..` or `/` has a meaning here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Vendor = Literal["anthropic", "openai"]
Protocol = Literal["anthropic", "openai-chat", "openai-responses", ""]


class Route(NamedTuple):
    """An allowed request. `path` is the upstream's. `protocol` is empty if no model answers it."""

    vendor: Vendor
    method: str
    path: str
    protocol: Protocol = ""


class Refusal(NamedTuple):
    """The reason why a request is refused, as an HTTP status and a sentence."""

    status: int
    reason: str


_ROUTES = {
    ("/" + route.vendor + route.path): route
    for route in (
        Route("anthropic", "POST", "/v1/messages", "anthropic"),
        Route("anthropic", "POST", "/v1/messages/count_tokens"),
        Route("anthropic", "GET", "/v1/models"),
        Route("openai", "POST", "/v1/chat/completions", "openai-chat"),
        Route("openai", "POST", "/v1/responses", "openai-responses"),
        Route("openai", "GET", "/v1/models"),
    )
}
_MODEL = re.compile(r"/(anthropic|openai)(/v1/models/[A-Za-z0-9][A-Za-z0-9._:@-]{0,127})\Z")
PROBES = frozenset({"/", "/anthropic", "/anthropic/", "/openai", "/openai/"})
"""Paths at which GET and HEAD report that a door is here, without a key."""

_QUERY = re.compile(rb"[A-Za-z0-9._~=&%+-]{0,1024}\Z")

_REQUEST_HEADERS = frozenset(
    {
        "accept",
        "anthropic-beta",
        "anthropic-dangerous-direct-browser-access",
        "anthropic-version",
        "content-type",
        "idempotency-key",
        "openai-beta",
        "user-agent",
        "x-app",
        "x-openai-internal-codex-responses-lite",  # the form of codex's body
    }
)
_RESPONSE_HEADERS = frozenset(
    {
        "anthropic-version",
        "content-length",
        "content-type",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
    }
)
_RESPONSE_PREFIXES = ("anthropic-ratelimit-", "x-ratelimit-")


def find(method: str, raw_path: str, query: bytes) -> Route | Refusal:
    """Return the route of a request, or the reason for its refusal."""
    route = _ROUTES.get(raw_path)
    if route is None and (model := _MODEL.match(raw_path)):
        route = Route("anthropic" if model[1] == "anthropic" else "openai", "GET", model[2])
    if route is None:
        return Refusal(404, "the door has no such path")
    if method != route.method:
        return Refusal(405, f"the door accepts only {route.method} here")
    if not _QUERY.match(query):
        return Refusal(400, "the query is too long or has invalid characters")
    return route


def vendor_of(raw_path: str) -> Vendor:
    """Return the vendor whose format an error for this path has."""
    return "openai" if raw_path.startswith("/openai") else "anthropic"


def request_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Return the headers of a guest's request that are sent to an upstream."""
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return [(name, value) for name, value in named if name in _REQUEST_HEADERS]


def response_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers of an upstream's answer that a guest may see: none that name the account or set a cookie."""
    return [(name, value) for name, value in ((n.lower(), v) for n, v in headers) if _passes(name)]


def _passes(name: str) -> bool:
    return name in _RESPONSE_HEADERS or name.startswith(_RESPONSE_PREFIXES)


def presented_keys(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Return the keys of a request, from `x-api-key` and `authorization: Bearer`."""
    keys = []
    for name, value in headers:
        if name.lower() == b"x-api-key":
            keys.append(value.strip())
        elif name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
