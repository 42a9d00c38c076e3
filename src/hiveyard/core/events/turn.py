"""Events of turns: one run of an agent each, and its outcome."""

from __future__ import annotations

from typing import Literal

from hiveyard.core.events.body import Body, Failure

Outcome = Literal["succeeded", "failed", "cancelled", "timeout"]


class TurnCreated(Body, frozen=True, kw_only=True, tag="turn.created"):
    """A prompt was queued. `woken_by` are the kinds of the messages that it brings, if a mailbox made it."""

    agent: str
    model: str = ""
    woken_by: tuple[str, ...] = ()


class TurnStarted(Body, frozen=True, kw_only=True, tag="turn.started"):
    """The agent's process was started in the guest."""

    agent: str
    program: str = ""
    model: str = ""
    pid: int | None = None


class TurnEnded(Body, frozen=True, kw_only=True, tag="turn.ended"):
    """The turn ended. Its outcome is decided by the agent's events, its exit code and the work tree together."""

    outcome: Outcome
    exit_code: int | None = None
    failure: Failure | None = None
    conversation: str | None = None


class ResultCollected(Body, frozen=True, kw_only=True, tag="result.collected"):
    """The branch, the patch and the counts were collected and are on the host."""

    branch: str
    base: str
    head: str
    commits: int
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    leftover: bool = False  # Hiveyard made the last commit from changes that the agent had not committed


TurnEvent = TurnCreated | TurnStarted | TurnEnded | ResultCollected
