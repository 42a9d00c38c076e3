"""Make a new index final: git reads a file again that may have changed after the index was written.

Git compares times in seconds. A file that was written in the same second as the index could have changed since, so git
reads it again at the next command: after a checkout that is most of the files, and slow in a guest. So their times are
set back by a second, in the work tree and in the index.

The format is version 2 of `gitformat-index(5)`: a header, entries sorted by path, extensions and a checksum.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from pathlib import Path

from hiveyard.core.errors import RepositoryError

VERSION_2 = ("-c", "index.version=2", "-c", "index.skipHash=false")
"""Options for the git command that writes the index."""
_HEADER = struct.Struct(">4sLL")
# Times and their nanoseconds (ctime, mtime), device, inode, mode, user, group and size; then the hash and the flags.
_ENTRY = struct.Struct(">10L")
_FLAGS = struct.Struct(">H")
_MTIME = struct.Struct(">LL")
_MTIME_AT = 8
_GITLINK = 0o160000  # the mode of a submodule, whose directory has no time


def settle(index: Path, work: Path, object_format: str) -> None:
    """Set back the times of the files of `work` that are as new as the index. Nothing else may be using both. Raises
    RepositoryError for an index of another version."""
    data = bytearray(index.read_bytes())
    signature, version, count = _HEADER.unpack_from(data)
    if (signature, version) != (b"DIRC", 2):
        raise RepositoryError(f"{index} is not an index of version 2")
    status = index.stat()
    written, hashed = int(status.st_mtime), hashlib.new(object_format).digest_size
    at, root = _HEADER.size, os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(count):
            fields = _ENTRY.unpack_from(data, at)
            name_at = at + _ENTRY.size + hashed + _FLAGS.size
            end = data.index(b"\0", name_at)
            if fields[2] >= written and stat.S_IFMT(fields[6]) != _GITLINK:
                _MTIME.pack_into(data, at + _MTIME_AT, written - 1, 0)
                name = bytes(data[name_at:end])
                os.utime(name, (written - 1, written - 1), dir_fd=root, follow_symlinks=False)
            # One to eight NUL bytes fill the entry up to a multiple of eight.
            at += (end - at) // 8 * 8 + 8
    finally:
        os.close(root)
    data[-hashed:] = hashlib.new(object_format, data[:-hashed]).digest()
    index.write_bytes(data)
    os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))
