"""A guest's kernel, as far as what serves /session sees it: a small true client of FUSE.

The server is the real program, started as a VM's is; a pair of sockets stands for the serial port.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import hiveyard

ROOT = 1
PROGRAM = f"""import sys
sys.path.insert(0, {str(Path(hiveyard.__file__).parent.parent)!r})
from hiveyard.machines.fuse_server.server import main
main()"""
PAUSE, FENCE, GO = -1001, -1002, -1003
LOOKUP, FORGET, SETATTR, MKDIR, UNLINK, OPEN, READ, WRITE, RELEASE = 1, 2, 4, 9, 10, 14, 15, 16, 18
OPENDIR, READDIR, CREATE, FALLOCATE, READDIRPLUS = 27, 28, 35, 43, 44

_numbers = itertools.count(1)


class Answer(NamedTuple):
    code: int
    body: bytes


def message(verb: int, node: int, data: bytes = b"", *, unique: int | None = None) -> bytes:
    unique = next(_numbers) if unique is None else unique
    return struct.pack("<IIQQIIII", 40 + len(data), verb, unique, node, 1000, 1000, 1, 0) + data


def reading(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)


def dirents(body: bytes, *, plus: bool = False) -> list[tuple[int, bytes]]:
    """(where to go on, name) of each."""
    found, at = [], 0
    while at < len(body):
        at += 128 if plus else 0
        _, after, length, _ = struct.unpack_from("<QQII", body, at)
        found.append((after, body[at + 24 : at + 24 + length]))
        at += -(-(24 + length) // 8) * 8
    return found


class Kernel:
    """The guest's end of the port."""

    def __init__(self, port: socket.socket, control: Path, pid: int) -> None:
        self.port = port
        self.pid = pid
        self._control = control

    def send(self, data: bytes) -> None:
        self.port.sendall(data)

    def answer(self) -> Answer:
        """The next answer, whatever it is to."""
        size, code, _ = struct.unpack("<IiQ", self._take(16))
        return Answer(code, self._take(size - 16))

    def call(self, verb: int, node: int, data: bytes = b"") -> Answer:
        self.send(message(verb, node, data))
        return self.answer()

    def _take(self, count: int) -> bytes:
        taken = bytearray()
        while len(taken) < count:
            piece = self.port.recv(min(count - len(taken), 1 << 20))
            if not piece:
                raise EOFError("the server has ended")
            taken += piece
        return bytes(taken)

    # What programs do.

    def lookup(self, name: str, parent: int = ROOT) -> int:
        """The node of a name; it must be there."""
        done = self.call(LOOKUP, parent, name.encode() + b"\0")
        assert done.code == 0
        return int(struct.unpack_from("<Q", done.body)[0])

    def opened(self, node: int, flags: int = os.O_RDWR) -> int:
        done = self.call(OPEN, node, struct.pack("<II", flags, 0))
        assert done.code == 0, os.strerror(-done.code)
        return int(struct.unpack_from("<Q", done.body)[0])

    def opendir(self, node: int = ROOT) -> int:
        done = self.call(OPENDIR, node, struct.pack("<II", os.O_RDONLY, 0))
        assert done.code == 0, os.strerror(-done.code)
        return int(struct.unpack_from("<Q", done.body)[0])

    def names(self, handle: int, piece: int = 1 << 17) -> set[str]:
        """All that is in an open directory."""
        found: list[tuple[int, bytes]] = []
        while True:
            done = self.call(READDIR, ROOT, reading(handle, found[-1][0] if found else 0, piece))
            assert done.code == 0, os.strerror(-done.code)
            if not done.body:
                return {name.decode() for _, name in found} - {".", ".."}
            found += dirents(done.body)

    # What the host does.

    def quiet(self) -> bytes:
        """Have it quiet, as a snapshot does, with the guest's part in that; returns the table."""
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self._control))
            asker.sendall(b"quiet\n")
            for code in (PAUSE, FENCE):
                assert self.answer().code == code
                self.echo(code)
            with asker.makefile("rb") as line:
                return line.readline()

    def quiet_now(self) -> bytes:
        """The table of a server that is quiet already: the guest has no part in it."""
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self._control))
            asker.sendall(b"quiet\n")
            with asker.makefile("rb") as line:
                return line.readline()

    def wish(self, line: bytes) -> None:
        """Say one thing to the server and go, as one who is cancelled does; returns when it has been heard."""
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(self._control))
            asker.sendall(line)
            asker.shutdown(socket.SHUT_WR)
            while asker.recv(1 << 16):
                pass

    def echo(self, code: int) -> None:
        self.send(message(-code, 0, unique=0))

    def memory(self) -> int:
        """Bytes of memory that the server ever took."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise ProcessLookupError(self.pid)


@contextmanager
def serving(directory: Path, control: Path, table: Path | None = None) -> Iterator[Kernel]:
    """The real server of a directory, with us as its guest. `table`: the directory of a snapshot's table."""
    with socket.socket(socket.AF_UNIX) as listener:
        control.unlink(missing_ok=True)
        listener.bind(str(control))
        listener.listen(4)
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        root = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        state = -1 if table is None else os.open(table, os.O_RDONLY | os.O_DIRECTORY)
        fds = [fd for fd in (root, theirs.fileno(), listener.fileno(), state) if fd >= 0]
        words = [root, theirs.fileno(), listener.fileno(), -1, state]
        try:
            process = _started([*map(str, words)], fds)
        finally:
            theirs.close()
            for fd in {root, state} - {-1}:
                os.close(fd)
        with ours, process:
            try:
                yield Kernel(ours, control, process.pid)
            finally:
                process.kill()


def _started(words: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", PROGRAM, *words], pass_fds=fds)
