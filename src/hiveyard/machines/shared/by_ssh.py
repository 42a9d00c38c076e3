"""The person's own `ssh` to a machine, on a terminal: with a key of the machine's, nothing of the person's
configuration, and nobody believed at the other end but who has the pinned host key."""

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
    """Where ssh leads. `name` is what `host_key` (a public key, as in known_hosts) is known by; `key` is a private one
    in OpenSSH's form."""

    name: str
    user: str
    host: str
    port: int
    key: str
    host_key: str


def program(far: SshTarget, directory: Path, command: str, options: Sequence[str] = ()) -> list[str]:
    """The argv that runs `command`, a line for the shell there, on a terminal. `directory` is where the key can lie,
    and goes with the machine; `options` are more of ssh's own."""
    key, known = directory / "terminal_key", directory / "known_hosts"
    # Not synced: both are written anew each time.
    write_atomic(key, far.key.encode(), mode=0o600, durable=False)
    write_atomic(known, f"{far.name} {far.host_key.strip()}\n".encode(), mode=0o600, durable=False)
    own = (f"HostKeyAlias={far.name}", f"UserKnownHostsFile={_quoted(known)}", f"IdentityFile={_quoted(key)}")
    said = [word for option in (*_OPTIONS, *options, *own) for word in ("-o", option)]
    return ["ssh", "-F", "none", "-tt", *said, "-p", str(far.port), "-l", far.user, "--", far.host, command]


def _quoted(path: Path) -> str:
    """A path as one word of ssh's configuration, in which % begins a token."""
    return '"' + str(path).replace("%", "%%") + '"'
