"""Events of the steps of any work: their progress and duration. They change no state."""

from __future__ import annotations

from hiveyard.core.events.body import Body


class PhaseEnded(Body, frozen=True, kw_only=True, tag="phase.ended"):
    """A step of the work (`clone`, `image`, `boot`, `push`, `agent`, `collect`, ...) took `seconds`."""

    phase: str
    seconds: float


class Progress(Body, frozen=True, kw_only=True, tag="progress"):
    """A long step reports its progress."""

    message: str


class Notice(Body, frozen=True, kw_only=True, tag="notice"):
    """Something for the user to know that needs no action."""

    message: str
    code: str = ""


StepEvent = PhaseEnded | Progress | Notice
