"""Errors of databases, told in our words with what to do."""

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
    # With its log: SQLite removes one that stands beside a new file, and the newest events are in there.
    "SQLITE_NOTADB": ("it is no SQLite database", _ASIDE),
    "SQLITE_CORRUPT": ("it is damaged", _ASIDE),
    "SQLITE_CANTOPEN": ("it cannot be opened", "ls -ld {directory} {path}"),
    "SQLITE_READONLY": ("it may not be written", "ls -ld {directory} {path}"),
    "SQLITE_PERM": ("it may not be used", "ls -ld {directory} {path}"),
}
# What it says of a disk that is full, of a quota, and when the log's index finds no room. Other errors of the disk are
# none of these: after them nobody can tell what was stored.
_SQLITE_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP")


def sqlite_failure(path: str, directory: str, error: Exception) -> HiveyardError:
    """What a failed call on the SQLite file `path` means."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, IntegrityError):
        return StoreError(f"the journal refused a row: {cause}")
    name = getattr(cause, "sqlite_errorname", "") if isinstance(cause, sqlite3.Error) else ""
    said, hint = next((told for start, told in _SQLITE_HINTS.items() if name.startswith(start)), ("it failed", ""))
    detail = f"{cause} ({name})" if name else str(cause)
    return StoreUnusable(
        f"the journal {path}: {said}: {detail}", hint=hint.format(path=quote(path), directory=quote(directory))
    )


def sqlite_full(error: Exception) -> bool:
    """Whether a call on SQLite failed for want of space, so that nothing was stored."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlite_errorname", "") in _SQLITE_FULL


def postgres_failure(shown_url: str, error: BaseException) -> HiveyardError:
    """What a failed call on PostgreSQL means; `shown_url` has no password."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, IntegrityError):
        return StoreError(f"the journal refused a row: {cause}")
    return StoreUnusable(
        f"the journal at {shown_url}: {type(cause).__name__}: {cause}", hint=f"psql '{_for_psql(shown_url)}'"
    )


def _for_psql(shown_url: str) -> str:
    return shown_url.replace("postgresql+asyncpg://", "postgresql://", 1)
