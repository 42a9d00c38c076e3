"""Targets on the host for a hostile guest: listeners that record connections."""

from __future__ import annotations

import errno
import os
import secrets
import selectors
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple


class Bait(NamedTuple):
    """Listeners of this host: `port` on every address, `loopback` on 127.0.0.1 alone, `datagrams` for UDP, and an
    abstract unix socket. `came` records the ones that were reached."""

    port: int
    loopback: int
    datagrams: int
    abstract: str
    came: list[str]


@contextmanager
def bait() -> Iterator[Bait]:
    """Run the listeners for as long as the block lasts; `came` is complete after it."""
    abstract = f"@hiveyard-bait-{secrets.token_hex(4)}"
    with ExitStack() as stack:
        everywhere = stack.enter_context(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True))
        loopback = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind("\0" + abstract[1:])
        local.listen()
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("0.0.0.0", 0))
        listeners = {"tcp": everywhere, "loopback": loopback, "unix": local, "udp": datagrams}
        came = stack.enter_context(_watched(listeners))
        yield Bait(everywhere.getsockname()[1], loopback.getsockname()[1], datagrams.getsockname()[1], abstract, came)


@contextmanager
def _watched(listeners: Mapping[str, socket.socket]) -> Iterator[list[str]]:
    came: list[str] = []
    stop, stopped = socket.socketpair()

    def watch() -> None:
        with selectors.DefaultSelector() as ready:
            for name, listener in listeners.items():
                ready.register(listener, selectors.EVENT_READ, name)
            ready.register(stopped, selectors.EVENT_READ, "")
            while (found := {key.data for key, _ in ready.select()}) != {""}:
                came.extend(f"{name} {_taken(listeners[name])}" for name in found - {""})

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield came
    finally:
        stop.close()
        thread.join()
        stopped.close()


def _taken(listener: socket.socket) -> str:
    if listener.type == socket.SOCK_DGRAM:
        return str(listener.recvfrom(512)[1])
    peer, address = listener.accept()
    peer.close()
    return str(address)


def own_addresses() -> list[str]:
    """Return the address that this host uses for outgoing connections, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]


def holders(secret: str) -> set[int]:
    """Return the processes of this host with a text in their environment or command line."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            try:
                if secret.encode() in (process / name).read_bytes():
                    found.add(int(process.name))
            except OSError:
                continue
    return found


def files_with(root: Path, wanted: set[bytes]) -> list[str]:
    """Return the files below a directory that contain one of some texts; for hard links only one name."""
    found, seen = [], set()
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            with suppress(FileNotFoundError):  # running programs create and remove files
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_size and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    if _holds(path, wanted):
                        found.append(str(path))
    return found


def _holds(path: Path, wanted: set[bytes]) -> bool:
    edge = max(map(len, wanted)) - 1
    before = b""
    for piece in _pieces(path):
        if any(text in before + piece for text in wanted):
            return True
        before = piece[-edge:]
    return False


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the data of a file without its holes: the memory of a machine consists mostly of holes."""
    with path.open("rb", buffering=0) as file:
        while True:
            try:
                file.seek(file.tell(), os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # there is no more data
                    raise
                return
            if not (piece := file.read(4 << 20)):
                return
            yield piece


def processes_of(home: Path) -> dict[int, str]:
    """Return the processes of an installation, found by command line and working directory; zombies have neither."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, place = (process / "cmdline").read_bytes().decode(errors="replace"), os.readlink(process / "cwd")
        except OSError:
            continue
        if str(home) in words + place:
            found[int(process.name)] = words.replace("\0", " ")
    return found
