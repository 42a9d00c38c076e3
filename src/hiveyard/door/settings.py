"""The settings of the door. This module does not read the environment: `from_environment` gets the mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from hiveyard.core.errors import BadSetting
from hiveyard.kit.address import loopback

ANTHROPIC_VARIABLE = "HIVEYARD_ANTHROPIC_UPSTREAM"
OPENAI_VARIABLE = "HIVEYARD_OPENAI_UPSTREAM"


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """The upstreams of requests to models, and the limits of guests' requests."""

    anthropic_upstream: str = "https://api.anthropic.com"
    """Address that requests below `/anthropic` are sent to."""
    openai_upstream: str = "https://api.openai.com"
    """Address that requests below `/openai` are sent to."""
    plain_http: bool = False
    """Whether keys may be sent to an upstream over plain HTTP that is not on this host."""
    proxy: str = ""
    """Address of an HTTP proxy for the upstreams; empty means a direct connection."""
    ca_file: str = ""
    """File of certificate authorities to trust instead of the usual ones, in PEM format."""
    body_mib: int = 64
    """Largest request body, in MiB."""
    bodies_mib: int = 256
    """Total size of the request bodies that one door holds at the same time, in MiB."""
    bodies_total_mib: int = 1024
    """Total size of the request bodies that all doors hold at the same time, in MiB."""
    header_kib: int = 32
    """Largest request head, in KiB."""
    requests: int = 32
    """Requests of one door that are answered at the same time; further ones wait."""
    connections: int = 256
    """Connections of one door at the same time; further ones are closed at once."""
    head_seconds: float = 20.0
    """Longest time in seconds that a request's head may take to arrive."""
    body_seconds: float = 120.0
    """Longest time in seconds that a request's body may take to arrive."""
    stall_seconds: float = 120.0
    """Longest time in seconds that a guest may leave an answer unread before it is cut."""
    connect_seconds: float = 15.0
    """Longest time in seconds to reach an upstream."""
    silence_seconds: float = 600.0
    """Longest time in seconds that an upstream may send nothing."""

    def __post_init__(self) -> None:
        for name in ("anthropic_upstream", "openai_upstream"):
            _check(name, getattr(self, name), plain_http=self.plain_http)
        if self.proxy and not self.proxy.startswith(("http://", "https://")):
            raise BadSetting("door.proxy is not an address: it must start with http:// or https://")
        for name in ("body_mib", "bodies_mib", "bodies_total_mib", "header_kib", "requests", "connections"):
            _positive(name, getattr(self, name))
        for name in ("head_seconds", "body_seconds", "stall_seconds", "connect_seconds", "silence_seconds"):
            _positive(name, getattr(self, name))

    def upstream(self, vendor: str) -> str:
        """Return the base address of a vendor, without a slash or `/v1` at its end."""
        base = self.anthropic_upstream if vendor == "anthropic" else self.openai_upstream
        return base.rstrip("/").removesuffix("/v1").rstrip("/")


def from_environment(settings: DoorSettings, environment: Mapping[str, str]) -> DoorSettings:
    """Return `settings` with the upstreams of the environment; empty variables are ignored. Raises BadSetting."""
    return replace(
        settings,
        anthropic_upstream=environment.get(ANTHROPIC_VARIABLE) or settings.anthropic_upstream,
        openai_upstream=environment.get(OPENAI_VARIABLE) or settings.openai_upstream,
    )


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise BadSetting(f"door.{name} is {value}: it must be more than 0")


def _check(name: str, address: str, *, plain_http: bool) -> None:
    try:
        parts = urlsplit(address)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        raise BadSetting(f"door.{name} is {_shown(address)!r}: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise BadSetting(
            f"door.{name} is {_shown(address)!r}: it must start with https:// or http:// and a host",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadSetting(
            f"door.{name} has a user, a password, a query or a fragment: only host, port and path are allowed",
            hint="keys go into ANTHROPIC_API_KEY, OPENAI_API_KEY or keys.toml",
        )
    if parts.scheme == "http" and not plain_http and not loopback(host):
        raise BadSetting(
            f"door.{name} is {_shown(address)!r}: the key would be sent to {host} unencrypted",
            hint="use https://, or set door.plain_http = true",
        )


def _shown(address: str) -> str:
    """Hide the part before an @, which may be a password."""
    scheme, mark, rest = address.rpartition("@")
    return f"***@{rest}" if mark and scheme else address
