"""Facts about the steps of any work: how they go and how long they took. They move no state."""

from __future__ import annotations

from hiveyard.core.events.body import Body


class PhaseEnded(Body, frozen=True, kw_only=True, tag="phase.ended"):
    """A step of the work took so many seconds (`clone`, `image`, `boot`, `push`, `agent`, `collect`, ...)."""

    phase: str
    seconds: float


class Progress(Body, frozen=True, kw_only=True, tag="progress"):
    """A long step says where it is."""

    message: str


class Notice(Body, frozen=True, kw_only=True, tag="notice"):
    """Something a person should know and need not act on."""

    message: str
    code: str = ""


StepEvent = PhaseEnded | Progress | Notice
