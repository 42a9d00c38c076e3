"""End a turn that reaches its time limit or gives no sign of life."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from hiveyard.core.errors import AgentSilent, AgentTimeout, HiveyardError
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.turns.stop import Stop
from hiveyard.kit.clock import Clock

SUSPENDED = 30.0
"""Seconds that a sleep may be late; after more, the daemon itself was stopped or suspended."""


class Limit(NamedTuple):
    """A turn's time limit: it ends at `at` (seconds since the epoch), `seconds` after the start."""

    at: float
    seconds: float


class DoorActivity(Protocol):
    """The activity of a door: `busy` requests in progress, and the time of the last sign of life (monotonic)."""

    busy: int
    last_seen: float


class Liveness:
    """An agent's signs of life: its output and its requests to a model."""

    def __init__(self, clock: Clock, door: DoorActivity) -> None:
        self._clock = clock
        self._door = door
        self._last = clock.monotonic()

    def record(self) -> None:
        """Record a sign of life."""
        self._last = self._clock.monotonic()

    def silence(self) -> float:
        """Return the seconds since the last sign of life."""
        if self._door.busy:
            return 0.0
        return self._clock.monotonic() - max(self._last, self._door.last_seen)


async def watch(clock: Clock, settings: EngineSettings, limit: Limit, life: Liveness, stop: Stop) -> None:
    """Request the end when a limit is reached; run until then or until cancelled."""
    while True:
        reason = _time(clock, limit) or _silence(life, settings)
        if reason:
            stop.request(reason)
            return
        until = max(min(limit.at - clock.now(), settings.silence - life.silence()), 0.05)
        slept_at = clock.monotonic()
        await clock.sleep(until)
        if clock.monotonic() - slept_at > until + SUSPENDED:
            # The daemon was suspended: the agent's output of that time has not been read yet.
            life.record()


def _time(clock: Clock, limit: Limit) -> HiveyardError | None:
    if clock.now() < limit.at:
        return None
    return AgentTimeout(
        f"the turn reached its time limit of {limit.seconds:g} seconds and was stopped", hint="hv run --timeout SECONDS"
    )


def _silence(life: Liveness, settings: EngineSettings) -> HiveyardError | None:
    if life.silence() < settings.silence:
        return None
    return AgentSilent(
        f"the agent gave no sign of life for {settings.silence:.0f} seconds and was stopped",
        hint="[engine] silence in the settings changes the limit",
    )
