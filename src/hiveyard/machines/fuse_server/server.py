"""The program: the guest's port on one side, whoever wants it quiet on the other.

    DIRECTORY-FD GUEST-FD CONTROL-FD UID TABLE-FD

Control: a line `quiet` is answered with the table of files as one line of JSON; from then on nothing more of the guest
is heard until a line `go`. TABLE is the directory of such a table and of the files that were open and unlinked, or -1.

A hostile guest gets errors when it wants more than there is for it: tree.Bounds, and for all the rest MOST_DATA.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import struct
import sys

from hiveyard.machines.fuse_server.files import ANSWER, HEAD, LONGEST, Files
from hiveyard.machines.fuse_server.tree import Bounds, Tree, libc

MOST_HELD = 32 << 20  # bytes of answers that wait: no kernel asks for so much at once
MOST_DATA = 1 << 30  # bytes of memory
_OTHERS = 64  # descriptors that are no files of the guest
_READY, _ROOM = select.POLLIN | select.POLLHUP | select.POLLERR, select.POLLOUT | select.POLLHUP | select.POLLERR
_LOOK = 2.0
PAUSE, FENCE, GO = 1001, 1002, 1003


class Server:
    """The guest's port, and who controls it."""

    def __init__(self, files: Files, guest: socket.socket, control: socket.socket) -> None:
        self._files = files
        self._guest = guest
        self._listener = control
        self._asker: socket.socket | None = None
        self._quiet = self._wanted = False
        self._echoes = {PAUSE: 0, FENCE: 0}  # told to the guest and not come back
        self._asked = b""
        # Had from the start: when a guest has taken all memory, it must still be possible to tell it so.
        self._came = memoryview(bytearray(LONGEST + (1 << 18)))
        self._filled = 0
        self._going = bytearray()

    def tell(self, code: int) -> None:
        self._going += ANSWER.pack(ANSWER.size, -code, 0)

    def run(self) -> None:
        """Until the guest's QEMU has ended."""
        for sock in (self._guest, self._listener):
            sock.setblocking(False)
        while True:
            seen = self._wait()
            if self._quiet and self._ended():
                return
            guest = seen.get(self._guest.fileno(), 0)
            if self._going and guest & _ROOM:
                self._send()
            if self._hears and guest & _READY and not self._receive():
                return
            if (self._asker or self._listener).fileno() in seen:
                self._control()
            if not self._answer():
                return

    @property
    def _hears(self) -> bool:
        """Whether messages of the guest are taken now."""
        return not self._quiet and len(self._going) < MOST_HELD

    def _wait(self) -> dict[int, int]:
        """The sockets on which there is something to do. Not by `select`, which knows no descriptor beyond 1023."""
        poll = select.poll()
        poll.register(self._asker or self._listener, select.POLLIN)
        if wanted := (select.POLLIN if self._hears else 0) | (select.POLLOUT if self._going else 0):
            poll.register(self._guest, wanted)
        # While it is quiet the guest is not read, and so its end is not seen.
        return dict(poll.poll(_LOOK * 1000 if self._quiet else None))

    def _ended(self) -> bool:
        poll = select.poll()
        poll.register(self._guest, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _receive(self) -> bool:
        try:
            count = self._guest.recv_into(self._came[self._filled :])
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._filled += count
        return count > 0

    def _answer(self) -> bool:
        """Answer what has come, for as long as the answers may wait here. False: what came makes no sense."""
        start = 0
        while self._hears and self._filled - start >= HEAD.size:
            size, verb = struct.unpack_from("<II", self._came, start)
            if not HEAD.size <= size <= LONGEST:
                return False
            if self._filled - start < size:
                break
            self._message(verb, self._came[start : start + size])
            start += size
            if len(self._going) >= MOST_HELD:
                self._send()
        self._came[: self._filled - start] = self._came[start : self._filled]
        self._filled -= start
        self._send()
        return True

    def _message(self, verb: int, message: memoryview) -> None:
        if verb in self._echoes:
            self._echo(verb)
        else:
            self._going += self._files.answer(message)

    def _echo(self, verb: int) -> None:
        """A guest that is slow may still be at an earlier wish, which was taken back: only the last counts, and a
        fence that would come behind a go would keep it paused for ever."""
        if not self._echoes[verb]:
            return
        self._echoes[verb] -= 1
        if not self._wanted or self._echoes[PAUSE]:
            return
        if verb == PAUSE:
            self._wish(FENCE)
        elif not self._echoes[FENCE]:
            self._quiet = True
            self._give_table()

    def _wish(self, code: int) -> None:
        self._echoes[code] += 1
        self.tell(code)

    def _send(self) -> None:
        while self._going:
            try:
                count = self._guest.send(self._going)
            except BlockingIOError:
                return
            except OSError:
                self._going.clear()
                return
            del self._going[:count]

    def _give_table(self) -> None:
        if self._asker is None:
            return
        try:
            for piece in self._files.tree.table():
                self._asker.sendall(piece)
            self._asker.sendall(b"\n")
        except (OSError, MemoryError):
            self._dismiss()  # it sees that the line has no end

    def _control(self) -> None:
        if self._asker is not None:
            self._ask()
            return
        self._asker, _ = self._listener.accept()
        self._asker.setblocking(True)

    def _dismiss(self) -> None:
        if self._asker is not None:
            self._asker.close()
        self._asker, self._asked = None, b""

    def _ask(self) -> None:
        assert self._asker is not None
        try:
            data = self._asker.recv(100)
        except OSError:
            data = b""
        self._asked += data
        if self._asked == b"go\n":
            self._asked, self._quiet, self._wanted = b"", False, False
            self.tell(GO)
        elif self._asked == b"quiet\n":
            self._asked, self._wanted = b"", True
            if self._quiet:
                self._give_table()
            else:
                self._wish(PAUSE)
        if not data:
            self._dismiss()


def descend(uid: int) -> None:
    """Be an ordinary user without any right, for good."""
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges


def _limit(kind: int, most: int | None = None) -> int:
    """Take no more of something than `most`, and never more than we may; returns what that is."""
    limit = resource.getrlimit(kind)[1]
    if most is not None and (limit == resource.RLIM_INFINITY or most < limit):
        limit = most
    resource.setrlimit(kind, (limit, limit))
    return limit


def _bounds() -> Bounds:
    files = _limit(resource.RLIMIT_NOFILE)
    bounds = Bounds()
    if files == resource.RLIM_INFINITY:
        return bounds
    return bounds._replace(opened=min(bounds.opened, files - _OTHERS))


def _restored(tree: Tree, state: int) -> None:
    with os.fdopen(os.open("table.json", os.O_RDONLY, dir_fd=state), "rb") as file:
        tree.restore(json.load(file), state)


def main() -> None:
    directory, guest, control, uid, state = (int(word) for word in sys.argv[1:6])
    os.umask(0)
    tree = Tree(directory, _bounds())
    # What a table was made of and what becomes of it are here at once for a moment.
    _limit(resource.RLIMIT_DATA, 2 * MOST_DATA)
    if state >= 0:
        # Before we have lost our rights: what a process has open stays open, whatever its mode is by now.
        _restored(tree, state)
    _limit(resource.RLIMIT_DATA, MOST_DATA)
    descend(uid)
    server = Server(Files(tree), socket.socket(fileno=guest), socket.socket(fileno=control))
    if state >= 0:
        server.tell(GO)
    server.run()
