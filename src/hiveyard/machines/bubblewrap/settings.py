"""Settings of the namespace provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BubblewrapSettings:
    """`[bubblewrap]` in the settings file."""

    host_paths: tuple[str, ...] = ()
    """More host directories that machines with `--image host` can read: `["/opt"]`."""
    uid: int = 61999
    """Host user and group id that machines run as when the daemon is root. It should own nothing."""
    boot_timeout: float = 30.0
    """Seconds a machine may take to start."""
