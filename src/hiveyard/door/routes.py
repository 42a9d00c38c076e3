"""What a guest may ask for: an allow-list of methods, paths and headers. Everything else is refused.

Paths are compared as they came, before any decoding, so that no encoding of `..` or `/` means anything here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Vendor = Literal["anthropic", "openai"]
Protocol = Literal["anthropic", "openai-chat", "openai-responses", ""]


class Route(NamedTuple):
    """One thing that may be asked for. `path` is the upstream's. `protocol` is empty for what no model answers."""

    vendor: Vendor
    method: str
    path: str
    protocol: Protocol = ""


class Refusal(NamedTuple):
    """Why something may not be asked for, as an HTTP status and a sentence."""

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
"""Paths at which GET and HEAD say that a door is here, without a key."""

_QUERY = re.compile(rb"[A-Za-z0-9._~=&%+-]{0,1024}\Z")

_ASKED = frozenset(
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
        "x-openai-internal-codex-responses-lite",  # tells in which form codex put the body
    }
)
_ANSWERED = frozenset(
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
_ANSWERED_BEGINNINGS = ("anthropic-ratelimit-", "x-ratelimit-")


def find(method: str, raw_path: str, query: bytes) -> Route | Refusal:
    """The route of a request, or why there is none."""
    route = _ROUTES.get(raw_path)
    if route is None and (model := _MODEL.match(raw_path)):
        route = Route("anthropic" if model[1] == "anthropic" else "openai", "GET", model[2])
    if route is None:
        return Refusal(404, "the door leads to no such path")
    if method != route.method:
        return Refusal(405, f"the door takes only {route.method} here")
    if not _QUERY.match(query):
        return Refusal(400, "the query is too long or has characters that do not belong there")
    return route


def vendor_of(raw_path: str) -> Vendor:
    """In whose words an error for this path is put."""
    return "openai" if raw_path.startswith("/openai") else "anthropic"


def asked_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Of a guest's headers those that an upstream gets to see."""
    named = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return [(name, value) for name, value in named if name in _ASKED]


def answered_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of an upstream's headers those that a guest gets to see: none that name the account, none that set a cookie."""
    return [(name, value) for name, value in ((n.lower(), v) for n, v in headers) if _passes(name)]


def _passes(name: str) -> bool:
    return name in _ANSWERED or name.startswith(_ANSWERED_BEGINNINGS)


def presented_keys(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys that a request shows, from `x-api-key` and `authorization: Bearer`."""
    keys = []
    for name, value in headers:
        if name.lower() == b"x-api-key":
            keys.append(value.strip())
        elif name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
