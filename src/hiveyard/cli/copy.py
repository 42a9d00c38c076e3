"""Copy files between this host and a session: a tar stream, packed on one side and unpacked on the other."""

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
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.shared.unpacking import Unpacked, unpack

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_NOT_FOUND, _DENIED, _UNSUPPORTED = 40, 43, 44
_CHANGED = 1  # tar: a file changed while it was read
_SOCKET = b": socket ignored"
_PIECE = 256 << 10

_HOME = r"""
LC_ALL=C
p=$1
[[ $p == "~" || $p == "~/"* ]] && p=$HOME${p#"~"}
[[ $p == /* ]] || p=/session/repo/$p
"""
# Arguments: PATH.
_PACK = (
    _HOME
    + r"""
while [[ $p == */ && $p != / ]]; do p=${p%/}; done
[[ -e $p || -L $p ]] || exit 40
[[ -f $p || -d $p || -L $p ]] || exit 44
d=${p%/*}
exec tar -C "${d:-/}" -cf - -- "./${p##*/}"
"""
)
# Arguments: PATH NAME DIRECTORY(1 or empty). The archive has one file or directory, called `it`. It becomes PATH, or
# PATH/NAME if PATH is a directory. A file is copied completely or not at all.
_UNPACK = (
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
"""Run an argv in the session's guest."""
Progress = Callable[[int], None]
"""Called with the size of each piece, in bytes."""


def from_guest(open: Open, path: str, target: Path, report: Progress = lambda size: None) -> Unpacked:
    """Copy a file or directory of the guest to `target`, or into it if it is a directory. Raises GuestFileError,
    BadInput, NoSpace."""
    into = target / (posixpath.basename(path.rstrip("/")) or "root") if target.is_dir() else target
    if not into.parent.is_dir():
        raise BadInput(f"the directory {into.parent} does not exist", hint=f"mkdir -p {into.parent}")
    with open(("bash", "-c", _PACK, "hv", path)) as duplex:
        duplex.feed(())
        output = _Output(duplex)
        first = output.read(1)
        if not first:
            output.check(path, may_change=True)
        stream = io.BufferedReader(_Prefixed(first, output), _PIECE)
        done = unpack(stream, into.absolute(), report, umask=_umask())
        output.check(path, may_change=True)
    return done._replace(left_out=done.left_out + output.sockets)


def to_guest(open: Open, source: Path, path: str, report: Progress = lambda size: None) -> None:
    """Copy a file or directory to `path` in the guest, or into it if it is a directory there. Links stay links. Raises
    BadInput, GuestFileError."""
    if not source.exists():
        raise BadInput(f"{source} does not exist")
    if not source.is_file() and not source.is_dir():
        raise BadInput(f"{source} is neither a file nor a directory: pipes, sockets and devices are not copied")
    name = source.resolve().name
    directory = "1" if source.is_dir() else ""
    with open(("bash", "-c", _UNPACK, "hv", path, name, directory)) as duplex:
        errors: list[Exception] = []
        duplex.feed_beside(_packed(source, report, errors))
        try:
            _Output(duplex).check(path)
        except GuestFileError:
            # After an error here the guest only reports that the archive ended too early.
            if not errors:
                raise
        if errors:
            raise errors[0]


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


class _Output:
    """The output of tar in the guest. Its stdout is read as a file; `check` reports its stderr and exit code."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._held = b""
        self._stderr = self._line = b""
        self.sockets = 0
        self._status: int | None = None

    def read(self, size: int = -1) -> bytes:
        while not self._held and self._status is None:
            letter, data = self._duplex.next()
            if letter == b"o":
                self._held = data
            elif letter == b"e":
                self._stderr = (self._stderr + data)[-4096:]
                self._count(data)
            else:
                self._status = int(data)
        piece, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        return piece

    def _count(self, data: bytes) -> None:
        """Count the sockets, which tar leaves out with a message on stderr."""
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-4096:]
        self.sockets += sum(line.endswith(_SOCKET) for line in lines)

    def check(self, path: str, *, may_change: bool = False) -> None:
        """Read to the end, and raise the error that tar reports: GuestFileError or NoSpace. With `may_change`, a file
        that changed while tar read it is not an error."""
        while self.read(_PIECE):
            pass
        message = one_line(decode(self._stderr)) or f"exit code {self._status}"
        if self._status == _NOT_FOUND:
            raise GuestFileNotFound(f"{path} does not exist in the guest, or its directory does not")
        if self._status == _UNSUPPORTED:
            raise GuestFileError(f"{path} in the guest is neither a file nor a directory: nothing was copied")
        if self._status == _DENIED or "Permission denied" in message:
            raise GuestPermissionDenied(f"{path} in the guest: permission denied: {message}")
        if "No space left" in message:
            raise NoSpace(f"{path}: there is no space left in the guest")
        if self._status != 0 and not (may_change and self._status == _CHANGED):
            raise GuestFileError(f"{path} in the guest: {message}")


class _Prefixed(io.RawIOBase):
    """A stream whose first piece was already read."""

    def __init__(self, first: bytes, rest: _Output) -> None:
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


def _packed(source: Path, report: Progress, errors: list[Exception]) -> Iterator[bytes]:
    """Yield a tar archive of `source`, called `it`, in pieces. A thread creates it. An error ends it early, and is
    added to `errors`."""
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
                tar.add(source.resolve() if source.is_symlink() else source, arcname="it", filter=_without_owner)
        except (OSError, tarfile.TarError) as error:
            errors.append(error)
        pieces.put(None)

    Thread(target=make, daemon=True).start()
    while (piece := pieces.get()) is not None:
        report(len(piece))
        yield piece


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the member without its owner, or None for a file of a kind that is not copied."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None
