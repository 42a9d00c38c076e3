"""The program: the guest's port on one side, whoever wants it quiet on the other.

    DIRECTORY-FD GUEST-FD CONTROL-FD UID TABLE-FD

Control: a line `quiet` is answered with the table of files as one line of JSON; from then on nothing more of the guest
is heard until a line `go`. TABLE is the directory of such a table and of the files that were open and unlinked, or -1.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import select
import socket
import struct
import sys

from hiveyard.machines.served.files import ANSWER, HEAD, LONGEST, Files
from hiveyard.machines.served.tree import Tree, libc

MOST_HELD = 8 << 20
_LOOK = 2.0
PAUSE, FENCE, GO = 1001, 1002, 1003


class Server:
    """The guest's port, and who controls it."""

    def __init__(self, files: Files, guest: socket.socket, control: socket.socket) -> None:
        self._files = files
        self._guest = guest
        self._listener = control
        self._asker: socket.socket | None = None
        self._quiet = False
        self._asked = b""
        self._came = bytearray()
        self._going: collections.deque[memoryview] = collections.deque()
        self._held = 0

    def tell(self, code: int) -> None:
        self._queue(ANSWER.pack(ANSWER.size, -code, 0))

    def run(self) -> None:
        """Until the guest's QEMU has ended."""
        for sock in (self._guest, self._listener):
            sock.setblocking(False)
        while True:
            readers: list[socket.socket] = [self._asker or self._listener]
            if self._held < MOST_HELD and not self._quiet:
                readers.append(self._guest)
            # While it is quiet the guest is not read, and so its end is not seen.
            pause = _LOOK if self._quiet else None
            ready, writable, _ = select.select(readers, [self._guest] if self._going else [], [], pause)
            if self._quiet and self._ended():
                return
            if self._guest in ready and not self._receive():
                return
            if writable:
                self._send()
            if self._listener in ready:
                self._asker, _ = self._listener.accept()
                self._asker.setblocking(True)
            elif self._asker in ready:
                self._ask()

    def _ended(self) -> bool:
        poll = select.poll()
        poll.register(self._guest, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _receive(self) -> bool:
        try:
            data = self._guest.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._came += data
        start = 0
        while len(self._came) - start >= HEAD.size:
            size, verb = struct.unpack_from("<II", self._came, start)
            if not HEAD.size <= size <= LONGEST:
                return False
            if len(self._came) - start < size:
                break
            self._message(verb, bytes(self._came[start : start + size]))
            start += size
        del self._came[:start]
        self._send()
        return bool(data)

    def _message(self, verb: int, message: bytes) -> None:
        if verb == PAUSE:
            self.tell(FENCE)
        elif verb == FENCE:
            self._quiet = True
            self._give_table()
        elif answer := self._files.answer(message):
            self._queue(answer)

    def _give_table(self) -> None:
        if self._asker is not None:
            with contextlib.suppress(OSError):
                self._asker.sendall(json.dumps(self._files.tree.table()).encode() + b"\n")

    def _queue(self, data: bytes) -> None:
        self._going.append(memoryview(data))
        self._held += len(data)

    def _send(self) -> None:
        while self._going:
            try:
                count = self._guest.send(self._going[0])
            except BlockingIOError:
                return
            except OSError:
                self._going.clear()
                return
            self._held -= count
            self._going[0] = self._going[0][count:]
            if not self._going[0]:
                self._going.popleft()

    def _ask(self) -> None:
        assert self._asker is not None
        try:
            data = self._asker.recv(100)
        except OSError:
            data = b""
        self._asked += data
        if self._asked == b"go\n":
            self._asked, self._quiet = b"", False
            self.tell(GO)
        elif self._asked == b"quiet\n":
            self._asked = b""
            if self._quiet:
                self._give_table()
            else:
                self.tell(PAUSE)
        if not data:
            self._asker.close()
            self._asker, self._asked = None, b""
        self._send()


def descend(uid: int) -> None:
    """Be an ordinary user without any right, for good."""
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges


def main() -> None:
    directory, guest, control, uid, state = (int(word) for word in sys.argv[1:6])
    os.umask(0)
    table = None
    if state >= 0:
        with os.fdopen(os.open("table.json", os.O_RDONLY, dir_fd=state), "rb") as file:
            table = json.load(file)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tree = Tree(directory)
    if table is not None:
        # Before we have lost our rights: what a process has open stays open, whatever its mode is by now.
        tree.restore(table, state)
    descend(uid)
    server = Server(Files(tree), socket.socket(fileno=guest), socket.socket(fileno=control))
    if table is not None:
        server.tell(GO)
    server.run()
