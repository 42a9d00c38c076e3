"""The settings of the page."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import NamedTuple


class Address(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    @property
    def shown(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """One field per key of `[web]`; see docs/settings.md."""

    listen: str = "127.0.0.1:8470"
    """Address and port of the page. Port 0 takes a free one."""
    hosts: tuple[str, ...] = ()
    """Other names, with their ports, under which browsers reach the page: those of a proxy, for instance."""

    def __post_init__(self) -> None:
        if not _is_loopback(self.address.host) and not self.hosts:
            raise ValueError(
                f"web.listen is {self.listen!r}: other machines could reach the page there. If that is intended, name "
                'the page\'s address in web.hosts, for instance hosts = ["desk.example:8470"]'
            )

    @property
    def address(self) -> Address:
        """The address of `listen`. Raises ValueError for another text."""
        host, _, port = self.listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(host)
            number = int(port)
        except ValueError:
            raise ValueError(f"web.listen is {self.listen!r}, and not an address with a port: 127.0.0.1:8470") from None
        if not 0 <= number <= 65535:
            raise ValueError(f"web.listen is {self.listen!r}: a port is at most 65535")
        return Address(host, number)

    @property
    def is_local(self) -> bool:
        """Whether only this host reaches the page."""
        return _is_loopback(self.address.host)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback
