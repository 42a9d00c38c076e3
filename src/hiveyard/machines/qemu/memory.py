"""Read the pages of its memory that a guest has changed.

The memory is a private mapping of a file in the QEMU process. Changed pages belong to that process alone, and the
kernel reports which pages those are. The guest must be paused, and its QEMU must not write to its memory. Reading the
pages of another process needs root, or the same user where the kernel allows it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import CannotKeepMemory, ProviderError

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECE = 4 << 20
# The highest byte of a changed page's entry in pagemap: present (0x80) or swapped (0x40), and not a file's (0x20).
_CHANGED = re.compile(rb"[\x40-\x5f\x80-\x9f\xc0-\xdf]+")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+)")


class Piece(NamedTuple):
    """Bytes of a guest's memory, with their offset in it."""

    at: int
    data: bytes


class _Mapping(NamedTuple):
    start: int
    end: int
    offset: int
    device: str
    inode: int


class File(NamedTuple):
    """A file as the kernel names it in a list of mappings. `device` can differ from the one that stat reports."""

    device: str
    inode: int
    size: int


def mapped(fd: int) -> File:
    """Return the file that is open as `fd`."""
    with mmap.mmap(fd, _PAGE, flags=mmap.MAP_PRIVATE) as page:
        byte = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(byte)
        del byte
        here = next(one for one in _read_maps("self") if one.start <= address < one.end)
    return File(here.device, here.inode, os.fstat(fd).st_size)


def changes(pid: int, base: File) -> Iterator[Piece]:
    """Yield the pages that process `pid` changed in its private mapping of the file `base`, in the file's order. Raises
    CannotKeepMemory without the right to read them."""
    memory = _opened(pid)
    try:
        for mapping in _mappings(pid, base):
            for start, end in _changed_ranges(pid, mapping):
                yield from _pieces(memory, start, end, start - mapping.start + mapping.offset)
    finally:
        os.close(memory)


def check(pid: int) -> None:
    """Raise CannotKeepMemory if this user may not read the memory of process `pid`."""
    os.close(_opened(pid))


def _opened(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise CannotKeepMemory(
            "a running VM cannot be snapshotted: the kernel lets only root read its memory",
            hint="sudo sysctl -w kernel.yama.ptrace_scope=1",
        ) from error


def _mappings(pid: int, base: File) -> list[_Mapping]:
    found = [one for one in _read_maps(str(pid)) if (one.device, one.inode) == (base.device, base.inode)]
    if sum(mapping.end - mapping.start for mapping in found) < base.size:
        raise CannotKeepMemory(f"the memory file that QEMU {pid} started with no longer exists")
    return found


def _read_maps(process: str) -> Iterator[_Mapping]:
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        if match := _MAPPING.match(line):
            start, end, offset = (int(word, 16) for word in match.groups()[:3])
            yield _Mapping(start, end, offset, match.group(4), int(match.group(5)))


def _changed_ranges(pid: int, mapping: _Mapping) -> Iterator[tuple[int, int]]:
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(mapping.start // _PAGE * 8)
        entries = pagemap.read((mapping.end - mapping.start) // _PAGE * 8)
    for run in _CHANGED.finditer(entries[7::8]):
        yield mapping.start + run.start() * _PAGE, mapping.start + run.end() * _PAGE


def _pieces(memory: int, start: int, end: int, at: int) -> Iterator[Piece]:
    while start < end:
        data = os.pread(memory, min(end - start, _PIECE), start)
        if not data:
            raise ProviderError("the memory of QEMU ends before its mapping")
        yield Piece(at, data)
        start, at = start + len(data), at + len(data)
