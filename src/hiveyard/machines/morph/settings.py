"""Settings of the Morph Cloud provider."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from hiveyard.kit.address import loopback

_HOST_KEY: Final = re.compile(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+=*\Z")
_HOME: Final = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9_-]*)+\Z")
_GATEWAY: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9.-]*):([0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class MorphSettings:
    """`[morph]` in the settings file."""

    url: str = "https://cloud.morph.so/api"
    """Address of the service."""
    home: str = "/home/agent"
    """Home of the user that `prepare` makes in a base image, and the meaning of `~` in its machines."""
    streaming: bool = True
    """Whether a command's output is streamed; false polls for it, for a proxy that delays streams."""
    request_timeout: float = 30.0
    """Time limit of one request in seconds."""
    patience: float = 60.0
    """Seconds for which a request with a temporary failure is retried."""
    boot_timeout: float = 180.0
    """Time limit in seconds until a machine can run a command."""
    pause_timeout: float = 120.0
    """Time limit in seconds for saving or restoring a machine's memory."""
    answer_mib: int = 16
    """Maximum size of an answer in MiB."""

    ssh_gateway: str = "ssh.cloud.morph.so:22"
    """The address of the ssh gateway to its machines, as HOST:PORT."""
    ssh_host_key: str = ""
    """The gateway's public host key, as `TYPE KEY`; without it no terminal can be opened."""

    def gateway(self) -> tuple[str, int]:
        """Host and port of the ssh gateway."""
        host, _, port = self.ssh_gateway.rpartition(":")
        return host, int(port)

    def __post_init__(self) -> None:
        if not _private(self.url):
            raise ValueError(f"url is {self.url!r}: a key is sent there, so it begins with https://")
        if not _HOME.match(self.home):
            raise ValueError(f"home is {self.home!r}: it is a path, as /home/agent")
        if not _GATEWAY.match(self.ssh_gateway) or not 0 < self.gateway()[1] < 65536:
            raise ValueError(f"ssh_gateway is {self.ssh_gateway!r}: it is HOST:PORT, as ssh.cloud.morph.so:22")
        if self.ssh_host_key and not _HOST_KEY.match(self.ssh_host_key):
            raise ValueError(f"ssh_host_key is {self.ssh_host_key!r}: it is TYPE KEY, as ssh-ed25519 AAAAC3Nz…")


def _private(url: str) -> bool:
    """Return whether the connection is encrypted or stays on this host."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and loopback(str(host))))
