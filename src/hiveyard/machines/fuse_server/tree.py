"""The files of a session that its guest knows and has open.

The guest is hostile. It names files by (directory, one name) only; directories are opened beneath the root, through no
symlink, and a name is never followed. What is kept here for it is bounded: beyond that it gets an error.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

ROOT = 1
_NAME = 56  # bytes that a name in a list takes beside its own
_AT_ONCE = 4096

libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
_BENEATH_NO_LINKS = 0x08 | 0x04 | 0x02


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def beneath(root: int, path: bytes, flags: int) -> int:
    """Open `path` beneath `root`, through no symlink. Never waits for the other end of a pipe."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | (0 if flags & os.O_PATH else os.O_NONBLOCK)
    how = _How(flags, 0, _BENEATH_NO_LINKS)
    fd = int(libc.syscall(_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def copied(place: int, name: bytes) -> int:
    """A nameless file with the content of `name` in the directory `place`, which lies on the same disk: one in memory
    would take the host's, as much as the guest likes. Holes stay holes."""
    source = beneath(place, name, os.O_RDONLY)
    try:
        # Whoever serves may open it anew, as another user than we are now; there is no name to do that by.
        target = os.open(b"new-" + name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=place)
        try:
            os.unlink(b"new-" + name, dir_fd=place)
            _copy(source, target)
        except BaseException:
            os.close(target)
            raise
        return target
    finally:
        os.close(source)


def _copy(source: int, target: int) -> None:
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(target, size)
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(target, source, at, min(end - at, 1 << 24)) or size


class Bounds(NamedTuple):
    """How much is kept for a guest.

    A name that it knows takes half a KiB here and 1 KiB in its kernel, which forgets when it needs the room: only the
    largest guests know so many. A directory of a million files can still be listed."""

    known: int = 1 << 20
    opened: int = 1 << 16
    listed: int = 128 << 20  # bytes: the names of directories that are being read, all together


class Node:
    """A file that the guest knows. `places` are its names, (directory's node, name); none: it is unlinked."""

    __slots__ = ("count", "ino", "places")

    def __init__(self, ino: int, places: list[tuple[int, bytes]], count: int = 0) -> None:
        self.ino = ino
        self.places = places
        self.count = count


class Opened:
    """An open file or directory of the guest. A directory has its `names`, as of when it was read from the start; they
    take `weight` bytes."""

    __slots__ = ("fd", "flags", "names", "node", "weight")

    def __init__(self, fd: int, node: int, flags: int, names: list[bytes] | None = None) -> None:
        self.fd = fd
        self.node = node
        self.flags = flags
        self.names = names
        self.weight = 0


class Tree:
    """The files that a guest knows and has open."""

    def __init__(self, root: int, bounds: Bounds | None = None) -> None:
        self.root = root
        self._bounds = bounds or Bounds()
        self._listed = 0
        self.nodes: dict[int, Node] = {ROOT: Node(os.fstat(root).st_ino, [], 1)}
        self.opened: dict[int, Opened] = {}
        self._at: dict[tuple[int, bytes], int] = {}
        self._linked: dict[int, int] = {}
        self._next = ROOT + 1
        self._handle = 1

    # Where things are.

    def path(self, number: int) -> bytes:
        parts: list[bytes] = []
        while number != ROOT:
            node = self.nodes.get(number)
            if node is None or not node.places or len(parts) > 2048:
                raise fail(errno.ESTALE)
            number, name = node.places[0]
            parts.append(name)
        return b"/".join(reversed(parts)) or b"."

    @contextmanager
    def directory(self, number: int) -> Iterator[int]:
        fd = beneath(self.root, self.path(number), os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def place(self, number: int) -> Iterator[tuple[int, bytes]]:
        """A node's directory and its name there."""
        node = self.nodes.get(number)
        if node is None or not node.places:
            raise fail(errno.ESTALE)
        parent, name = node.places[0]
        with self.directory(parent) as fd:
            yield fd, name

    def _nameless(self, number: int) -> Opened | None:
        """A file that has no name any more, where it is open."""
        node = self.nodes.get(number)
        if node is None or node.places:
            return None
        return next((opened for opened in self.opened.values() if opened.node == number), None)

    def open(self, number: int, flags: int) -> int:
        """A descriptor of a node."""
        if (opened := self._nameless(number)) is not None:
            return os.open(f"/proc/self/fd/{opened.fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
        return beneath(self.root, self.path(number), flags)

    def status(self, number: int) -> os.stat_result:
        if number == ROOT:
            return os.fstat(self.root)
        if (opened := self._nameless(number)) is not None:
            return os.fstat(opened.fd)
        with self.place(number) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    # What the guest learns.

    @property
    def full(self) -> bool:
        """Whether the guest cannot learn a further name."""
        return max(len(self.nodes), len(self._at)) >= self._bounds.known

    @contextmanager
    def making(self, number: int) -> Iterator[int]:
        """As `directory`, to make something there. Raises ENOMEM when the guest could not know it afterwards."""
        if self.full:
            raise fail(errno.ENOMEM)
        with self.directory(number) as fd:
            yield fd

    def meet(self, parent: int, name: bytes, status: os.stat_result) -> int:
        """The node of a name that was just looked at; the guest knows it once more. Raises ENOMEM."""
        number = self._at.get((parent, name))
        if number is not None and self.nodes[number].ino != status.st_ino:
            self.forsake(parent, name)
            number = None
        if number is None:
            if self.full:
                raise fail(errno.ENOMEM)
            shared = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
            number = self._linked.get(status.st_ino) if shared else None
            if number is None:
                number, self._next = self._next, self._next + 1
                self.nodes[number] = Node(status.st_ino, [])
            self._settle(number, parent, name)
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            self._linked[status.st_ino] = number
        self.nodes[number].count += 1
        return number

    def _settle(self, number: int, parent: int, name: bytes) -> None:
        place = (parent, name)
        if (node := self.nodes[number]).places:
            node.places.append(place)
        else:
            node.places = [place]  # smaller than a list that something was added to
        self._at[place] = number

    def forsake(self, parent: int, name: bytes) -> int | None:
        """A name is gone."""
        number = self._at.pop((parent, name), None)
        if number is not None:
            self.nodes[number].places.remove((parent, name))
        return number

    def move(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, exchange: bool) -> None:
        moved, there = self.forsake(parent, name), self.forsake(new_parent, new_name)
        if moved is not None:
            self._settle(moved, new_parent, new_name)
        if exchange and there is not None:
            self._settle(there, parent, name)

    def link(self, number: int, status: os.stat_result) -> None:
        self._linked[status.st_ino] = number

    def forget(self, number: int, count: int) -> None:
        node = self.nodes.get(number)
        if node is None or number == ROOT:
            return
        node.count -= count
        if node.count <= 0:
            for place in node.places:
                self._at.pop(place, None)
            if self._linked.get(node.ino) == number:
                del self._linked[node.ino]
            del self.nodes[number]

    def check_handles(self) -> None:
        """Raises EMFILE when no more can be open."""
        if len(self.opened) >= self._bounds.opened:
            raise fail(errno.EMFILE)

    def hold(self, opened: Opened) -> int:
        handle, self._handle = self._handle, self._handle + 1
        self.opened[handle] = opened
        return handle

    def held(self, handle: int) -> Opened:
        try:
            return self.opened[handle]
        except KeyError:
            raise fail(errno.EBADF) from None

    def release(self, handle: int) -> None:
        if (opened := self.opened.pop(handle, None)) is not None:
            self._listed -= opened.weight
            os.close(opened.fd)

    def read_names(self, opened: Opened) -> list[bytes]:
        """Read an open directory from its start. Raises ENOMEM when the names of all that are open take too much."""
        self._listed -= opened.weight
        opened.names, opened.weight = [], 0
        found: list[bytes] = []
        weight = 0
        with os.scandir(opened.fd) as entries:
            for entry in entries:
                found.append(os.fsencode(entry.name))
                weight += len(found[-1]) + _NAME
                if self._listed + weight > self._bounds.listed:
                    raise fail(errno.ENOMEM)
        found.sort()
        found[:0] = (b".", b"..")
        opened.names, opened.weight = found, weight
        self._listed += weight
        return found

    # As a table.

    def table(self) -> Iterator[bytes]:
        """As one JSON object, in pieces: there may be no room for all of it at once."""
        yield b'{"nodes": ['
        nodes = (
            [number, node.count, [[parent, os.fsdecode(name)] for parent, name in node.places]]
            for number, node in self.nodes.items()
            if number != ROOT
        )
        comma = b""
        while piece := json.dumps(list(itertools.islice(nodes, _AT_ONCE)))[1:-1]:
            yield comma + piece.encode()
            comma = b", "
        opened = [
            [handle, item.node, item.flags, item.names is not None, item.fd if self._orphan(item) else -1]
            for handle, item in self.opened.items()
        ]
        rest = {"opened": opened, "next": self._next, "handle": self._handle, "pid": os.getpid()}
        yield b"], " + json.dumps(rest)[1:].encode()

    def _orphan(self, item: Opened) -> bool:
        node = self.nodes.get(item.node)
        return item.names is None and (node is None or not node.places)

    def restore(self, table: dict[str, object], orphans: int) -> None:
        """Know and open what another server had, on a copy of its directory. `orphans`: a directory of the files that
        were open and unlinked, each called by its handle. What is not there any more stays an error for the guest."""
        nodes: list[tuple[int, int, list[tuple[int, str]]]] = table["nodes"]  # type: ignore[assignment]
        nodes.reverse()
        while nodes:  # and what was taken over goes, as there may be no room for both
            number, count, places = nodes.pop()
            self.nodes[number] = Node(0, [], count)
            for parent, name in places:
                self._settle(number, parent, os.fsencode(name))
        for number, node in list(self.nodes.items()):
            try:
                node.ino = self.status(number).st_ino
            except OSError:
                continue
            if len(node.places) > 1:
                self._linked[node.ino] = number
        for handle, number, flags, directory, orphan in table["opened"]:  # type: ignore[attr-defined]
            try:
                if orphan >= 0:
                    fd = copied(orphans, b"%d" % handle)
                else:
                    fd = beneath(self.root, self.path(number), flags & ~os.O_TRUNC)
            except OSError:
                continue
            self.opened[handle] = Opened(fd, number, flags, [] if directory else None)
        self._next = int(table["next"])  # type: ignore[call-overload]
        self._handle = int(table["handle"])  # type: ignore[call-overload]
