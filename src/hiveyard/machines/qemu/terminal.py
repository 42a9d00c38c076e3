"""A terminal in a VM for a person on the host: the person's own `ssh`, with the machine's key and nothing of the
person's configuration."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hiveyard.kit.files import write_atomic
from hiveyard.machines.qemu.record import Record

_OPTIONS = (
    *("IdentitiesOnly=yes", "IdentityAgent=none", "PreferredAuthentications=publickey", "BatchMode=yes"),
    *("StrictHostKeyChecking=yes", "UpdateHostKeys=no", "CheckHostIP=no", "GlobalKnownHostsFile=/dev/null"),
    *("ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes", "PermitLocalCommand=no", "ControlPath=none"),
    *("EscapeChar=none", "LogLevel=ERROR", "ConnectTimeout=60", "ServerAliveInterval=30", "ServerAliveCountMax=10"),
    # The ones that cost an emulated guest the least, as in ssh.py.
    *("KexAlgorithms=curve25519-sha256", "Ciphers=aes128-gcm@openssh.com", "Compression=no"),
)


def program(record: Record, directory: Path, argv: Sequence[str]) -> list[str]:
    """The argv that runs `argv` on a terminal in the machine of `record`; `directory` is where the key can lie, and
    goes with the machine."""
    key, known = directory / "terminal_key", directory / "known_hosts"
    # Not synced: a power cut ends the machine as well.
    write_atomic(key, record.key.encode(), mode=0o600, durable=False)
    write_atomic(known, f"{record.name} {record.host_key.strip()}\n".encode(), mode=0o600, durable=False)
    options = (*_OPTIONS, f"HostKeyAlias={record.name}", f"UserKnownHostsFile={_quoted(known)}")
    said = [word for option in options for word in ("-o", option)]
    way = ["ssh", "-F", "none", "-tt", *said, "-o", f"IdentityFile={_quoted(key)}", "-p", str(record.port)]
    # See ssh.py for what comes before.
    before = "unset SSH_CLIENT SSH_CONNECTION;echo 0 >/proc/self/oom_score_adj;exec "
    return [*way, "agent@127.0.0.1", before + shlex.join(argv)]


def _quoted(path: Path) -> str:
    """A path as one word of ssh's configuration, in which % begins a token."""
    return '"' + str(path).replace("%", "%%") + '"'
