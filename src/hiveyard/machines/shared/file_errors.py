"""Translate the exit codes of the file scripts to errors."""

from __future__ import annotations

from hiveyard.core.errors import (
    GuestDirectoryNotEmpty,
    GuestFileError,
    GuestFileNotFound,
    GuestIsADirectory,
    GuestNoSpace,
    GuestNotADirectory,
    GuestPermissionDenied,
    GuestWriteUnverified,
)
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.shared import scripts

_KNOWN: dict[int, tuple[type[GuestFileError], str]] = {
    scripts.NOT_FOUND: (GuestFileNotFound, "no such file or directory"),
    scripts.IS_DIRECTORY: (GuestIsADirectory, "is a directory"),
    scripts.NOT_DIRECTORY: (GuestNotADirectory, "not a directory, or a parent of it is not"),
    scripts.DENIED: (GuestPermissionDenied, "permission denied"),
    scripts.UNVERIFIED: (GuestWriteUnverified, "the content read back differs from the content written"),
    scripts.NOT_REGULAR: (GuestFileError, "not a regular file"),
}
# The scripts run in the C locale: these messages are the C library's.
_MESSAGES: dict[str, type[GuestFileError]] = {
    "No space left on device": GuestNoSpace,
    "Disk quota exceeded": GuestNoSpace,
    "Directory not empty": GuestDirectoryNotEmpty,
    "Operation not permitted": GuestPermissionDenied,
    "Read-only file system": GuestPermissionDenied,
}


def file_error(verb: str, path: str, status: int, stderr: bytes) -> GuestFileError:
    """Return the error of a script that exited with `status` and printed `stderr`."""
    words = decode(stderr)
    kind, why = _KNOWN.get(status, (GuestFileError, f"exit code {status}: {one_line(words)}"))
    if status not in _KNOWN:
        kind = next((kind for text, kind in _MESSAGES.items() if text in words), kind)
    return kind(f"cannot {verb} {path} in the guest: {why}", path=path)
