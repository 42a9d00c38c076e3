"""A terminal in a VM for a person on the host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hiveyard.machines.qemu.record import Record
from hiveyard.machines.shared import by_ssh

# The ones that cost an emulated guest the least, as in ssh.py.
_CHEAP = ("KexAlgorithms=curve25519-sha256", "Ciphers=aes128-gcm@openssh.com", "Compression=no")


def program(record: Record, directory: Path, argv: Sequence[str]) -> list[str]:
    """The argv that runs `argv` on a terminal in the machine of `record`; `directory` goes with the machine."""
    far = by_ssh.SshTarget(
        name=record.name,
        user="agent",
        host="127.0.0.1",
        port=record.port,
        key=record.key,
        host_key=record.host_key,
    )
    # See ssh.py for what comes before.
    before = "unset SSH_CLIENT SSH_CONNECTION;echo 0 >/proc/self/oom_score_adj;exec "
    return by_ssh.program(far, directory, before + shlex.join(argv), _CHEAP)
