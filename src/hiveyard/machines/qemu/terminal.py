"""Open a terminal in a VM for a user on the host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from hiveyard.machines.qemu.record import Record
from hiveyard.machines.shared import by_ssh

# The algorithms that cost an emulated guest the least, as in ssh.py.
_CHEAP = ("KexAlgorithms=curve25519-sha256", "Ciphers=aes128-gcm@openssh.com", "Compression=no")


def program(record: Record, directory: Path, argv: Sequence[str]) -> list[str]:
    """Return the host command that runs `argv` on a terminal in the machine of `record`. `directory` is the machine's
    directory on the host."""
    target = by_ssh.SshTarget(
        name=record.name,
        user="agent",
        host="127.0.0.1",
        port=record.port,
        key=record.key,
        host_key=record.host_key,
    )
    # The prefix is explained in ssh.py.
    before = "unset SSH_CLIENT SSH_CONNECTION;echo 0 >/proc/self/oom_score_adj;exec "
    return by_ssh.program(target, directory, before + shlex.join(argv), _CHEAP)
