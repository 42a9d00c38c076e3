"""What a machine with an open network needs of its host: slirp4netns, and resolvers that can be reached from there.

slirp4netns speaks for the machine in the host's network, as an ordinary program of its user: what that program could
reach the machine can, but for the host's loopback. Nobody can reach the machine.
"""

from __future__ import annotations

import ipaddress
import shutil
from pathlib import Path

from hiveyard.core.errors import ProviderUnavailable

PROGRAM = "slirp4netns"
_TUN = Path("/dev/net/tun")
# Where a resolver on the host's loopback says whom it asks itself.
_CONFIGURATIONS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def program() -> str:
    """Its path. Raises ProviderUnavailable."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise ProviderUnavailable(
            f"an open network for bubblewrap needs {PROGRAM}", hint=f"sudo apt-get install -y {PROGRAM}"
        )
    if not _TUN.exists():
        raise ProviderUnavailable(f"an open network for bubblewrap needs {_TUN}", hint="sudo modprobe tun")
    return found


def resolv_conf(configurations: tuple[Path, ...] = _CONFIGURATIONS) -> str:
    """The machine's /etc/resolv.conf: the host's resolvers but for those on its loopback.

    Raises ProviderUnavailable when there is no other."""
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
    return [said[1] for said in words if len(said) > 1 and said[0] == "nameserver" and _usable(said[1])]


def _usable(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.version == 4 and not found.is_loopback and not found.is_unspecified
