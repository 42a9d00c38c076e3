"""End a turn before it fills the host's disk: what is left is needed to journal its end and to collect its work."""

from __future__ import annotations

import os
from pathlib import Path

from hiveyard.core.errors import DiskReserve
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.turns.stop import Stop
from hiveyard.kit.clock import Clock

DISK_INTERVAL, DISK_SOONEST = 5.0, 0.1
"""Longest and shortest time between two checks of the host's free space, in seconds. It is polled while an agent runs,
because no system reports it."""
FASTEST = 1024.0
"""Assumed write speed of a guest, in MiB per second."""


async def watch_disk(clock: Clock, settings: EngineSettings, disk: Path, stop: Stop) -> None:
    """Request the end when the host's disk is nearly full; run until then or until cancelled.

    `disk` is any path on the file system that the session writes to. The less is free, the shorter the interval: a
    guest that writes at FASTEST cannot fill the disk between two checks. A guest that reserves space without writing
    can. In a VM that reserves space on the guest's disk only, but not in other machines."""
    while (mib := _free_mib(disk)) >= settings.disk_reserve_mib:
        await clock.sleep(min(max(mib / FASTEST, DISK_SOONEST), DISK_INTERVAL))
    stop.request(
        DiskReserve(
            f"{disk} has {mib} MiB left, less than the reserve of {settings.disk_reserve_mib} MiB",
            hint="free some space, or set [engine] disk_reserve_mib",
        )
    )


def _free_mib(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize >> 20
