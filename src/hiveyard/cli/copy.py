"""Files between this host and a session: one tar in a stream, packed on one side and unpacked on the other."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING

from hiveyard.api.duplex import Duplex
from hiveyard.core.errors import BadInput, GuestFileError, GuestFileNotFound, GuestPermissionDenied, NoSpace
from hiveyard.engine.archive.unpacking import Unpacked, unpack
from hiveyard.kit.text import decode, one_line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_NOT_FOUND, _DENIED, _STRANGE = 40, 43, 44
_CHANGED = 1  # tar's: a file changed while it was read
_SOCKET = b": socket ignored"
_PIECE = 256 << 10

_HOME = r"""
LC_ALL=C
p=$1
[[ $p == "~" || $p == "~/"* ]] && p=$HOME${p#"~"}
[[ $p == /* ]] || p=/session/repo/$p
"""
# PATH
_TAKE = (
    _HOME
    + r"""
while [[ $p == */ && $p != / ]]; do p=${p%/}; done
[[ -e $p || -L $p ]] || exit 40
[[ -f $p || -d $p || -L $p ]] || exit 44
d=${p%/*}
exec tar -C "${d:-/}" -cf - -- "./${p##*/}"
"""
)
# PATH NAME DIRECTORY(1 or empty): one file or directory, called `it` in the archive, becomes PATH, or PATH/NAME when
# PATH is a directory. A file comes whole or not at all.
_PUT = (
    _HOME
    + r"""
if [[ -d $p ]]; then p=${p%/}/$2; elif [[ $p == */ ]]; then exit 40; fi
d=${p%/*}
[[ -d ${d:-/} ]] || exit 40
[[ -w ${d:-/} ]] || exit 43
if [[ $3 ]]; then
  mkdir -p -- "$p" && exec tar -C "$p" --strip-components=1 --no-same-owner -xpf -
else
  [[ -d $p ]] && { echo "$p is a directory" >&2; exit 45; }
  t=$d/.hv-copy.$$.$RANDOM$RANDOM
  mkdir -m 700 -- "$t" || exit 43
  trap 'rm -rf -- "$t"' EXIT
  tar -C "$t" --no-same-owner -xpf - && mv -fT -- "$t/it" "$p"
fi
"""
)

Open = Callable[[Sequence[str]], AbstractContextManager[Duplex]]
"""Runs an argv in the session's guest."""
Progress = Callable[[int], None]
"""Told of each piece's size in bytes."""


def from_guest(open: Open, path: str, target: Path, report: Progress = lambda size: None) -> Unpacked:
    """Copy a file or directory of the guest to `target`, or into it when that is a directory. Raises GuestFileError,
    BadInput, NoSpace."""
    into = target / (posixpath.basename(path.rstrip("/")) or "root") if target.is_dir() else target
    if not into.parent.is_dir():
        raise BadInput(f"there is no directory {into.parent}", hint=f"mkdir -p {into.parent}")
    with open(("bash", "-c", _TAKE, "hv", path)) as duplex:
        duplex.feed(())
        said = _Said(duplex)
        first = said.read(1)
        if not first:
            said.check(path, changed=True)
        stream = io.BufferedReader(_Ahead(first, said), _PIECE)
        done = unpack(stream, into.absolute(), report, umask=_umask())
        said.check(path, changed=True)
    return done._replace(left_out=done.left_out + said.sockets)


def to_guest(open: Open, source: Path, path: str, report: Progress = lambda size: None) -> None:
    """Copy a file or directory to `path` in the guest, or into it when that is a directory there. Links stay links.
    Raises BadInput, GuestFileError."""
    if not source.exists():
        raise BadInput(f"there is no {source}")
    if not source.is_file() and not source.is_dir():
        raise BadInput(f"{source} is neither a file nor a directory: pipes, sockets and devices are not copied")
    name = source.resolve().name
    directory = "1" if source.is_dir() else ""
    with open(("bash", "-c", _PUT, "hv", path, name, directory)) as duplex:
        wrong: list[Exception] = []
        duplex.feed_beside(_packed(source, report, wrong))
        try:
            _Said(duplex).check(path)
        except GuestFileError:
            # An archive that ends too early is what the guest complains of; why it does is known here.
            if not wrong:
                raise
        if wrong:
            raise wrong[0]


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class _Said:
    """The output of a command: its stdout as a file, and the rest for a check at the end."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._held = b""
        self._complaint = self._line = b""
        self.sockets = 0
        self._status: int | None = None

    def read(self, size: int = -1) -> bytes:
        while not self._held and self._status is None:
            letter, data = self._duplex.next()
            if letter == b"o":
                self._held = data
            elif letter == b"e":
                self._complaint = (self._complaint + data)[-4096:]
                self._count(data)
            else:
                self._status = int(data)
        piece, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        return piece

    def _count(self, data: bytes) -> None:
        """Of sockets tar only says that they are not in the archive."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-4096:]
        self.sockets += sum(line.endswith(_SOCKET) for line in lines)

    def check(self, path: str, *, changed: bool = False) -> None:
        """Read to the end. Raises the GuestFileError that fits. `changed`: a file that changed while tar read it is
        none."""
        while self.read(_PIECE):
            pass
        words = one_line(decode(self._complaint)) or f"exit code {self._status}"
        if self._status == _NOT_FOUND:
            raise GuestFileNotFound(f"there is no {path} in the guest, or no directory for it")
        if self._status == _STRANGE:
            raise GuestFileError(f"{path} in the guest is neither a file nor a directory: nothing was copied")
        if self._status == _DENIED or "Permission denied" in words:
            raise GuestPermissionDenied(f"{path} in the guest: permission denied: {words}")
        if "No space left" in words:
            raise NoSpace(f"{path}: there is no space left in the guest")
        if self._status != 0 and not (changed and self._status == _CHANGED):
            raise GuestFileError(f"{path} in the guest: {words}")


class _Ahead(io.RawIOBase):
    """A stream of which the first piece was read already."""

    def __init__(self, first: bytes, rest: _Said) -> None:
        self._first = first
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._first or self._rest.read(len(view))
        self._first = b""
        view[: len(piece)] = piece
        return len(piece)


def _packed(source: Path, report: Progress, wrong: list[Exception]) -> Iterator[bytes]:
    """A tar of `source`, called `it`, in pieces, while it is made by a thread. What goes wrong ends it early."""
    pieces: Queue[bytes | None] = Queue(8)

    class Out(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: ReadableBuffer) -> int:
            piece = bytes(data)
            pieces.put(piece)
            return len(piece)

    def make() -> None:
        try:
            with tarfile.open(fileobj=Out(), mode="w|", format=tarfile.GNU_FORMAT, bufsize=_PIECE) as tar:
                tar.add(source.resolve() if source.is_symlink() else source, arcname="it", filter=_nobodys)
        except (OSError, tarfile.TarError) as error:
            wrong.append(error)
        pieces.put(None)

    Thread(target=make, daemon=True).start()
    while (piece := pieces.get()) is not None:
        report(len(piece))
        yield piece


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None
