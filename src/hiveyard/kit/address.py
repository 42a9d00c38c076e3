"""Addresses of services."""

from __future__ import annotations

from ipaddress import ip_address


def loopback(host: str) -> bool:
    """Return whether traffic to `host` stays on this computer."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
