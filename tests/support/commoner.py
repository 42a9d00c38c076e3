"""A person without rights, for a suite that runs as root: a user id, a home and subordinate ids of their own.

Nothing of the host changes: /etc/passwd and /etc/subuid are other files, and the Python at work is another place, in a
mount namespace that ends with the program.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hiveyard

_UID, _FIRST = 61997, 1_610_612_736
_ENTER = """
set -e
mount -t tmpfs -o mode=0755 none /mnt
mkdir /mnt/python /mnt/site /mnt/source
mount --bind "$PREFIX" /mnt/python
mount --bind "$SITE" /mnt/site
mount --bind "$SOURCE" /mnt/source
for name in passwd group subuid subgid; do mount --bind "$ETC/$name" "/etc/$name"; done
exec setpriv --reuid=$ID --regid=$ID --clear-groups --inh-caps=-all env -i "$@"
"""


class Commoner:
    """`home` is theirs; everything they make lies below it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._etc = home.with_name("etc")
        for directory in (self.home, self._etc):
            directory.mkdir()
        os.chown(self.home, _UID, _UID)
        for parent in self.home.parents:
            if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        self._write("passwd", f"commoner:x:{_UID}:{_UID}::{home}:/bin/bash\n")
        self._write("group", f"commoner:x:{_UID}:\n")
        for name in ("subuid", "subgid"):
            (self._etc / name).write_text(f"commoner:{_FIRST}:65536\n")

    def _write(self, name: str, line: str) -> None:
        (self._etc / name).write_text(Path("/etc", name).read_text() + line)

    def run(self, script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run bash as this person, in their home; `hv` is the command under test, `py` its Python, a function, and
        `$python` the program of that."""
        place = {
            "PREFIX": sys.base_prefix,
            "SITE": sysconfig.get_path("purelib"),
            "SOURCE": str(Path(hiveyard.__file__).parents[1]),
            "ETC": str(self._etc),
            "ID": str(_UID),
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        python = f"/mnt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        theirs = [
            f"HOME={self.home}",
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE=1",
            "USER=commoner",
        ]
        theirs += [
            "PYTHONPATH=/mnt/source:/mnt/site",
            "LD_LIBRARY_PATH=/mnt/python/lib",
            f"HIVEYARD_HOME={self.home}/hv",
        ]
        begin = f"cd ~; python={shlex.quote(python)}\n"
        begin += 'py() { "$python" "$@"; }; hv() { py -m hiveyard.cli.main "$@"; }\n'
        begin += "trap 'hv stop-daemon >&2' EXIT\n"
        argv = ["unshare", "--mount", "--propagation=private", "bash", "-c", _ENTER, "bash", *theirs]
        argv += ["bash", "-c", begin + script]
        return subprocess.run(argv, env=place, capture_output=True, text=True, timeout=timeout, check=False)

    def end(self) -> None:
        """Kill what still runs of theirs: a script that took too long has stopped nothing."""
        while left := list(self._processes()):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _processes(self) -> Iterator[int]:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"HOME={self.home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    yield int(process.name)
