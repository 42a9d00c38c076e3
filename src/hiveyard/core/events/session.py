"""Facts about sessions: workspaces that outlive their machines."""

from __future__ import annotations

from typing import Any

from hiveyard.core.events.body import Body, Failure


class SessionCreated(Body, frozen=True, kw_only=True, tag="session.created"):
    """A workspace with a directory of its own exists. `request` is there for one that no task made: what was asked
    for, complete. `parent` is the session that it was forked from."""

    slug: str
    repo: str
    agent: str
    request: dict[str, Any] | None = None
    parent: str | None = None


class SessionPrepared(Body, frozen=True, kw_only=True, tag="session.prepared"):
    """The repository was copied: work starts at `base` on branch `branch`."""

    base: str
    branch: str
    base_ref: str = ""


class SessionPreparing(Body, frozen=True, kw_only=True, tag="session.preparing"):
    """The repository is being copied and a machine is being made."""


class SessionRunning(Body, frozen=True, kw_only=True, tag="session.running"):
    """A machine is up and the agent may work."""


class SessionPlaced(Body, frozen=True, kw_only=True, tag="session.placed"):
    """It was decided where the session runs; `why` says how `auto` decided."""

    provider: str
    tier: str
    why: str = ""


class SessionPaused(Body, frozen=True, kw_only=True, tag="session.paused"):
    """Its machine is frozen where it stands."""


class SessionUnpaused(Body, frozen=True, kw_only=True, tag="session.unpaused"):
    """Its machine goes on where it stood."""


class SessionRewound(Body, frozen=True, kw_only=True, tag="session.rewound"):
    """The session stands again where it stood at a snapshot, after turn `after_turn`."""

    snapshot: str
    after_turn: int = 0


class SessionForked(Body, frozen=True, kw_only=True, tag="session.forked"):
    """The session begins where `parent` stood at a snapshot of it: `live` with memory and processes, else with its
    files and its `conversation`. `branch` is what the parent worked on, `image` what its machine
    was made of. The feed counts from byte `feed_offset`."""

    parent: str
    snapshot: str
    live: bool
    branch: str = ""
    image: str = ""
    conversation: str = ""
    feed_offset: int = 0


class SessionImported(Body, frozen=True, kw_only=True, tag="session.imported"):
    """The session came from another installation, where it had been `exported_at`; it goes on in `conversation`. The
    feed counts from byte `feed_offset`."""

    exported_at: float
    conversation: str = ""
    feed_offset: int = 0


class BudgetShared(Body, frozen=True, kw_only=True, tag="session.budget_shared"):
    """`children` were forked from the session and took `dollars` of its budget along."""

    children: list[str]
    dollars: float


class BudgetSet(Body, frozen=True, kw_only=True, tag="session.budget_set"):
    """From now on the session may spend `dollars` in all, what it has spent included."""

    dollars: float


class SessionStopped(Body, frozen=True, kw_only=True, tag="session.stopped"):
    """No machine any more; the files are kept. What was done last lies in these alone unless it was `collected`."""

    reason: str = ""
    collected: bool = True


class SessionFinished(Body, frozen=True, kw_only=True, tag="session.finished"):
    """The work is done and collected."""


class SessionFailed(Body, frozen=True, kw_only=True, tag="session.failed"):
    """The session cannot go on."""

    failure: Failure


SessionEvent = (
    SessionCreated
    | SessionPlaced
    | SessionPrepared
    | SessionPreparing
    | SessionRunning
    | SessionPaused
    | SessionUnpaused
    | SessionRewound
    | SessionForked
    | SessionImported
    | BudgetShared
    | BudgetSet
    | SessionStopped
    | SessionFinished
    | SessionFailed
)
