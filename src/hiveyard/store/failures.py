"""Translate errors of databases into ours, with a hint."""

from __future__ import annotations

import sqlite3
from shlex import quote

from sqlalchemy.exc import DBAPIError, IntegrityError

from hiveyard.core.errors import HiveyardError, StoreError, StoreUnusable

_ASIDE = "for e in '' -wal -shm; do mv {path}$e {path}.broken$e; done"
_SQLITE_HINTS = {
    "SQLITE_FULL": ("the disk is full", "df -h {directory}"),
    "SQLITE_IOERR": ("the disk failed or is full", "df -h {directory}"),
    "SQLITE_BUSY": ("another process is writing to it", "hv stop-daemon"),
    "SQLITE_LOCKED": ("another process is writing to it", "hv stop-daemon"),
    # With its log: SQLite removes a log that it finds beside a new file, and the newest events are in there.
    "SQLITE_NOTADB": ("it is not an SQLite database", _ASIDE),
    "SQLITE_CORRUPT": ("it is damaged", _ASIDE),
    "SQLITE_CANTOPEN": ("it cannot be opened", "ls -ld {directory} {path}"),
    "SQLITE_READONLY": ("it is read-only", "ls -ld {directory} {path}"),
    "SQLITE_PERM": ("permission denied", "ls -ld {directory} {path}"),
}
# The errors for a full disk, for a disk quota, and for no space for the log's index. After other disk errors it is
# unknown what was stored.
_SQLITE_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP")


def sqlite_failure(path: str, directory: str, error: Exception) -> HiveyardError:
    """Return our error for a failed call on the SQLite file `path`."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, IntegrityError):
        return StoreError(f"the journal refused a row: {cause}")
    name = getattr(cause, "sqlite_errorname", "") if isinstance(cause, sqlite3.Error) else ""
    known = (entry for start, entry in _SQLITE_HINTS.items() if name.startswith(start))
    reason, hint = next(known, ("it failed", ""))
    detail = f"{cause} ({name})" if name else str(cause)
    return StoreUnusable(
        f"the journal {path}: {reason}: {detail}", hint=hint.format(path=quote(path), directory=quote(directory))
    )


def sqlite_full(error: Exception) -> bool:
    """Whether a call on SQLite failed because the disk is full, so that nothing was stored."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlite_errorname", "") in _SQLITE_FULL


def postgres_failure(shown_url: str, error: BaseException) -> HiveyardError:
    """Return our error for a failed call on PostgreSQL. `shown_url` has no password."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, IntegrityError):
        return StoreError(f"the journal refused a row: {cause}")
    return StoreUnusable(
        f"the journal at {shown_url}: {type(cause).__name__}: {cause}", hint=f"psql '{_for_psql(shown_url)}'"
    )


def _for_psql(shown_url: str) -> str:
    return shown_url.replace("postgresql+asyncpg://", "postgresql://", 1)
