"""Find what an open network needs on the host: slirp4netns, and resolvers that a machine can reach.

slirp4netns makes the machine's connections in the host's network, as an ordinary program of its user. The machine can
reach what that program can reach, except for the host's loopback. The machine itself cannot be reached.
"""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

from hiveyard.core.errors import ProviderUnavailable

PROGRAM = "slirp4netns"
_TUN = Path("/dev/net/tun")
# The second is where systemd-resolved, a resolver on the host's loopback, lists its own servers.
_CONFIGURATIONS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def program() -> str:
    """Return the path of slirp4netns. Raises ProviderUnavailable."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise ProviderUnavailable(
            f"an open network for bubblewrap needs {PROGRAM}", hint=f"sudo apt-get install -y {PROGRAM}"
        )
    if not _TUN.exists():
        raise ProviderUnavailable(f"an open network for bubblewrap needs {_TUN}", hint="sudo modprobe tun")
    return found


def resolv_conf(configurations: tuple[Path, ...] = _CONFIGURATIONS) -> str:
    """Return the machine's /etc/resolv.conf: the host's resolvers, without those on its loopback.

    Raises ProviderUnavailable if none is left."""
    for file in configurations:
        if servers := _servers(file):
            return "".join(f"nameserver {server}\n" for server in servers)
    raise ProviderUnavailable(
        f"the host's only resolver is on its loopback ({configurations[0]}), which a machine cannot reach",
        hint="choose --provider docker or qemu",
    )


def _servers(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    words = [line.split() for line in lines]
    return [line[1] for line in words if len(line) > 1 and line[0] == "nameserver" and _usable(line[1])]


def _usable(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.version == 4 and not found.is_loopback and not found.is_unspecified
