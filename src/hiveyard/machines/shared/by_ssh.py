"""Connect the user's terminal to a machine with the `ssh` program: with the machine's key, without the user's
configuration, and only to a server with the pinned host key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hiveyard.kit.files import write_atomic

_OPTIONS = (
    *("IdentitiesOnly=yes", "IdentityAgent=none", "PreferredAuthentications=publickey", "BatchMode=yes"),
    *("StrictHostKeyChecking=yes", "UpdateHostKeys=no", "CheckHostIP=no", "GlobalKnownHostsFile=/dev/null"),
    *("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no", "ControlPath=none"),
    *("EscapeChar=none", "LogLevel=ERROR", "ConnectTimeout=60", "ServerAliveInterval=30", "ServerAliveCountMax=10"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SshTarget:
    """The server. `name` stands for it in known_hosts, with the public key `host_key`. `key` is a private key in the
    format of OpenSSH."""

    name: str
    user: str
    host: str
    port: int
    key: str
    host_key: str


def program(target: SshTarget, directory: Path, command: str, options: Sequence[str] = ()) -> list[str]:
    """Return the argv that runs `command`, a line for the server's shell, on a terminal. The key is written to
    `directory`, which is removed with the machine. `options` are more options of ssh."""
    key, known = directory / "terminal_key", directory / "known_hosts"
    # Not synced to disk: both are written each time.
    write_atomic(key, target.key.encode(), mode=0o600, durable=False)
    write_atomic(known, f"{target.name} {target.host_key.strip()}\n".encode(), mode=0o600, durable=False)
    own = (f"HostKeyAlias={target.name}", f"UserKnownHostsFile={_quoted(known)}", f"IdentityFile={_quoted(key)}")
    words = [word for option in (*_OPTIONS, *options, *own) for word in ("-o", option)]
    return ["ssh", "-F", "none", "-tt", *words, "-p", str(target.port), "-l", target.user, "--", target.host, command]


def _quoted(path: Path) -> str:
    """Quote a path as one word of ssh's configuration, in which % begins a token."""
    return '"' + str(path).replace("%", "%%") + '"'
