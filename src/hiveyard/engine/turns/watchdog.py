"""What ends a turn that does not end by itself: the wall clock, silence, and a host disk that fills up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

from hiveyard.core.errors import AgentSilent, AgentTimeout, DiskReserve, HiveyardError
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.turns.stop import Stop
from hiveyard.kit.clock import Clock

DISK_INTERVAL, DISK_SOONEST = 5.0, 0.1
"""Seconds between looks at the host's free space: no system tells us, so we ask, and only while an agent runs."""
FASTEST = 1024.0
"""MiB that a guest is taken to write in a second."""
ABSENCE = 30.0
"""Seconds that a sleep may take longer than it was to: more, and it was we who were away."""


class Limit(NamedTuple):
    """How long a turn may take: until `at` (seconds since the epoch), which is `seconds` after it was started."""

    at: float
    seconds: float


class Knocked(Protocol):
    """A door, as far as it tells of life: requests on their way, and when the last sign was (monotonic)."""

    busy: int
    last_seen: float


class Life:
    """Whether an agent is alive: it printed something, or it is talking with a model."""

    def __init__(self, clock: Clock, door: Knocked) -> None:
        self._clock = clock
        self._door = door
        self._last = clock.monotonic()

    def sign(self) -> None:
        self._last = self._clock.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign."""
        if self._door.busy:
            return 0.0
        return self._clock.monotonic() - max(self._last, self._door.last_seen)


async def watch(clock: Clock, settings: EngineSettings, limit: Limit, life: Life, stop: Stop) -> None:
    """Ask `stop` for the end when a limit is reached; runs until it is cancelled or has asked."""
    while True:
        reason = _time(clock, limit) or _silence(life, settings)
        if reason:
            stop.ask(reason)
            return
        until = max(min(limit.at - clock.now(), settings.silence - life.silence()), 0.05)
        slept_at = clock.monotonic()
        await clock.sleep(until)
        if clock.monotonic() - slept_at > until + ABSENCE:
            # We were stopped or suspended: what the agent said meanwhile has not been read yet.
            life.sign()


def _time(clock: Clock, limit: Limit) -> HiveyardError | None:
    if clock.now() < limit.at:
        return None
    return AgentTimeout(
        f"the turn reached its time limit of {limit.seconds:g} seconds and was stopped", hint="hv run --timeout SECONDS"
    )


def _silence(life: Life, settings: EngineSettings) -> HiveyardError | None:
    if life.silence() < settings.silence:
        return None
    return AgentSilent(
        f"the agent gave no sign of life for {settings.silence:.0f} seconds and was stopped",
        hint="[engine] silence in the settings moves the limit",
    )


async def watch_disk(clock: Clock, settings: EngineSettings, disk: Path, stop: Stop) -> None:
    """Ask `stop` for the end when the host's disk comes near to full; runs until it is cancelled or has asked.

    `disk` is any path on the file system that the session writes to. The less is free, the sooner it looks again: a
    guest that writes FASTEST cannot fill the disk between two looks. One that reserves space and writes nothing can:
    a VM's session is refused that (machines/fuse_server/files.py), nothing does it for the other kinds of machines."""
    while (mib := _free_mib(disk)) >= settings.disk_reserve_mib:
        await clock.sleep(min(max(mib / FASTEST, DISK_SOONEST), DISK_INTERVAL))
    stop.ask(
        DiskReserve(
            f"{disk} has {mib} MiB left, less than the reserve of {settings.disk_reserve_mib} MiB",
            hint="free some space, or set [engine] disk_reserve_mib",
        )
    )


def _free_mib(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize >> 20
