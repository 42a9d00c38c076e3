"""Join this terminal to a new one in a machine: `python terminal.py PTS UID PROGRAM ARGUMENT...`.

The new terminal is one of the machine's own devices. It is created from the host, through the machine's directory PTS,
so that it belongs to the machine's user. No program in the machine gets a descriptor of the host's terminal, with which
it could type there. PROGRAM enters the machine. This imports nothing of the package that takes long.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence

from hiveyard.machines.shared.terminal import HungUp, join, set_size

# These numbers are the same on every architecture that Hiveyard supports. PEER opens the other end without a path.
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_SAME_USER = "-"


def program(init: int, uid: int | None, env: Mapping[str, str], entering: Sequence[str]) -> list[str]:
    """Return the argv that runs a command on a terminal in the machine of process 1 `init`.

    `uid` is the machine's user on the host, None if that is this user. `env` is the whole environment. `entering`
    enters the machine and runs the command."""
    clean = [f"{name}={value}" for name, value in env.items()]
    here = [sys.executable, "-P", __file__, f"/proc/{init}/root/dev/pts", _SAME_USER if uid is None else str(uid)]
    return [*here, "env", "-i", *clean, *entering]


def main(argv: Sequence[str]) -> int:
    directory, uid, *words = argv
    master, slave = _terminal(directory, None if uid == _SAME_USER else int(uid))
    child = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        join(master, lambda size: set_size(master, size), over=lambda: child.poll() is not None)
    except HungUp:
        os.close(master)  # the kernel sends SIGHUP to the programs in the machine
        return 128 + signal.SIGHUP
    status = child.wait()
    return 128 - status if status < 0 else status


def _terminal(directory: str, uid: int | None) -> tuple[int, int]:
    """Return both ends of a new terminal among the devices in `directory`, owned by `uid`."""
    devices = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    if uid is not None:
        os.setegid(uid)
        os.seteuid(uid)
    try:
        master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=devices)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        if uid is not None:
            os.seteuid(os.getuid())
            os.setegid(os.getgid())
        os.close(devices)
    return master, slave


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
