"""Sparse files in a tar, in the format of GNU tar and Python (PAX format, sparse 1.0; "Storing Sparse Files" in GNU
tar's manual). A map comes before the content: the number of extents, then the offset and length of each, one number a
line, padded to whole blocks."""

from __future__ import annotations

import errno
import heapq
import io
import os
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, NamedTuple

_MAX_EXTENTS = 4096
"""Maximum number of extents of one file, because they are held in memory. In a file with more, the smallest holes are
written as zeros."""
_MAX_SIZE = (8 << 30) - 1
"""Maximum size that the header's own size field can hold. A size in a PAX header cannot be used: some programs take it
for the size with holes."""


class Extent(NamedTuple):
    at: int
    size: int


def data_extents(fd: int, size: int) -> list[Extent] | None:
    """Return the extents with data of a file of `size` bytes; None if it has too much data for this format."""
    found: list[Extent] = []
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # the rest is a hole
        if begin >= size:
            break
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        found.append(Extent(begin, at - begin))
        if len(found) > 2 * _MAX_EXTENTS:
            found = _merge_extents(found)
    found = _merge_extents(found) if len(found) > _MAX_EXTENTS else found
    os.lseek(fd, 0, os.SEEK_SET)
    return found if sum(one.size for one in found) < _MAX_SIZE - (1 << 20) else None


def make_sparse(info: tarfile.TarInfo, source: IO[bytes], extents: Sequence[Extent]) -> IO[bytes]:
    """Change `info` to describe a sparse file; return the stream to write as its content."""
    # The last extent gives the file's length, in case the file ends with a hole.
    ends = [*extents, Extent(info.size, 0)]
    table = "".join(f"{number}\n" for number in (len(ends), *(number for one in ends for number in one)))
    head = table.encode().ljust(-(-len(table) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, b"\0")
    above, _, name = info.name.rpartition("/")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": info.name,
        "path": info.name,  # otherwise tarfile would store the name below here if it is long
        "GNU.sparse.realsize": str(info.size),
    }
    info.name = f"{above}/GNUSparseFile.0/{name}"
    info.size = len(head) + sum(one.size for one in extents)
    return io.BufferedReader(_SparseStream(head, source, extents))


class _SparseStream(io.RawIOBase):
    """A stream of the map and then the extents of a file. Data that was truncated meanwhile is read as zeros."""

    def __init__(self, head: bytes, source: IO[bytes], extents: Sequence[Extent]) -> None:
        self._head = memoryview(head)
        self._source = source
        self._extents = list(reversed(extents))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, most: int) -> bytes | memoryview:
        if self._head:
            data, self._head = self._head[:most], self._head[most:]
            return data
        if not self._extents:
            return b""
        at, size = self._extents.pop()
        self._source.seek(at)
        piece = self._source.read(min(size, most)).ljust(min(size, most), b"\0")
        if size > most:
            self._extents.append(Extent(at + most, size - most))
        return piece


def _merge_extents(extents: Sequence[Extent]) -> list[Extent]:
    """Return at most _MAX_EXTENTS extents, with the smallest holes filled."""
    holes = [later.at - one.at - one.size for one, later in pairwise(extents)]
    kept = set(heapq.nlargest(_MAX_EXTENTS - 1, range(len(holes)), key=holes.__getitem__))
    found = [extents[0]]
    for hole, one in enumerate(extents[1:]):
        last = found[-1]
        if hole in kept:
            found.append(one)
        else:
            found[-1] = Extent(last.at, one.at + one.size - last.at)
    return found
