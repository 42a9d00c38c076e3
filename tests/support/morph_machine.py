"""Instances of the fake Morph Cloud: a tree of files, and namespaces in which commands run as root.

It needs root on the host: the commands of the service are root's in the guest, and make a user there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

from tests.contract.rootfs import small_image

_ENV = ["HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"]


def base_tree(directory: Path) -> Path:
    """The files of a base image, made once."""
    tree = directory / "base"
    if not tree.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tarfile.open(small_image(directory).rootfs) as tar:
            tar.extractall(tree, filter="fully_trusted")
        for name in ("root", "run", "tmp", "home", "proc", "dev"):
            (tree / name).mkdir(exist_ok=True)
        tree.chmod(0o755)
    return tree


class Vm:
    """One instance's inside, running for as long as nobody ends it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        read, write = os.pipe()
        argv = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--hostname", "morphvm"]
        argv += ["--bind", str(tree), "/", "--proc", "/proc", "--dev", "/dev"]
        # Of bounded size: tests fill them.
        for path, mode, mib in (("/run", "755", 256), ("/tmp", "1777", 256), ("/dev/shm", "1777", 32)):
            argv += ["--perms", mode, "--size", str(mib << 20), "--tmpfs", path]
        argv += ["--cap-add", "ALL", "--info-fd", str(write)]
        argv += ["--", "sleep", "infinity"]
        self._outer = subprocess.Popen(argv, pass_fds=[write], stdin=subprocess.DEVNULL, start_new_session=True)
        os.close(write)
        with os.fdopen(read) as info:
            self.pid = int(json.load(info)["child-pid"])
        self._space = os.readlink(f"/proc/{self.pid}/ns/pid")
        self._until_inside()

    def entering(self, argv: list[str]) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-n", "-i", "--", "env", "-i", *_ENV, *argv]

    @property
    def alive(self) -> bool:
        """Its first process, not bwrap's outer half, which notices a moment later."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """To all that runs in it."""
        for entry in os.listdir("/proc"):
            if entry.isdigit() and self._is_inside(entry):
                try:
                    os.kill(int(entry), number)
                except ProcessLookupError:
                    continue

    def end(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait()
        shutil.rmtree(self.tree, ignore_errors=True)

    def _is_inside(self, pid: str) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == self._space
        except OSError:
            return False

    def _until_inside(self) -> None:
        """bwrap tells of its child before the child has its files: until then it has those of the host, and then for a
        moment those of the host on top of its own."""
        while not (os.path.samefile(f"/proc/{self.pid}/root", self.tree) and self._roots() == 1):
            assert self.alive, "the fake machine did not start"
            time.sleep(0.002)

    def _roots(self) -> int:
        mounts = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return sum(line.split()[4] == "/" for line in mounts)
