"""Settings of the journal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """The place of the journal."""

    url: str = ""
    """The address of a PostgreSQL database, `postgresql://user@host/name`; empty means a file of this installation.
    The password belongs in `~/.pgpass`, not here."""
