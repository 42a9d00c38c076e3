"""Events of sessions: workspaces that outlive their machines."""

from __future__ import annotations

from typing import Any

import msgspec

from hiveyard.core.events.body import Body, Failure


class SessionCreated(Body, frozen=True, kw_only=True, tag="session.created"):
    """A workspace with a directory of its own exists.

    `request` is the complete request, if no task made the session. `parent` is the session that it was forked from."""

    slug: str
    repo: str
    agent: str
    request: dict[str, Any] | None = None
    parent: str | None = None


class SessionOpened(Body, frozen=True, kw_only=True, tag="session.opened"):
    """The session of a task that is over goes on as a session of its own. `request` is only in older journals."""

    request: dict[str, Any] | None = None


class SessionStopAsked(Body, frozen=True, kw_only=True, tag="session.stop_asked"):
    """Somebody asked to stop the session, for a `reason` if it is not a user. The end itself follows."""

    reason: str = ""


class SessionPrepared(Body, frozen=True, kw_only=True, tag="session.prepared"):
    """The repository was copied. Work starts at commit `base` on branch `branch`."""

    base: str
    branch: str
    base_ref: str = ""


class SessionPreparing(Body, frozen=True, kw_only=True, tag="session.preparing"):
    """The session has a place; the repository is being copied and a machine is being made."""


class SessionRunning(Body, frozen=True, kw_only=True, tag="session.running"):
    """A machine is running and the agent may work."""


class SessionPlaced(Body, frozen=True, kw_only=True, tag="session.placed"):
    """The place for the session was chosen. `why` says how `auto` decided."""

    provider: str
    tier: str
    why: str = ""


class SessionPaused(Body, frozen=True, kw_only=True, tag="session.paused"):
    """The session's machine was paused."""


class SessionUnpaused(Body, frozen=True, kw_only=True, tag="session.unpaused"):
    """The session's machine continued."""


class SessionRewound(Body, frozen=True, kw_only=True, tag="session.rewound"):
    """The session was set back to a snapshot, after turn `after_turn`."""

    snapshot: str
    after_turn: int = 0


class SessionForked(Body, frozen=True, kw_only=True, tag="session.forked"):
    """The session begins as a copy of `parent` at a snapshot.

    With `live` it has the parent's memory and processes, otherwise its files and its `conversation`. `branch` is the
    parent's branch, `image` the image of its machine. The feed is read from byte `feed_offset`."""

    parent: str
    snapshot: str
    live: bool
    branch: str = ""
    image: str = ""
    conversation: str = ""
    feed_offset: int = 0


class SessionImported(Body, frozen=True, kw_only=True, tag="session.imported"):
    """The session came from another installation, where it was exported at `exported_at`. It continues `conversation`.
    The feed is read from byte `feed_offset`."""

    exported_at: float
    conversation: str = ""
    feed_offset: int = 0


class BudgetShared(Body, frozen=True, kw_only=True, tag="session.budget_shared"):
    """`children` were forked from the session and took `dollars` of its budget."""

    children: list[str]
    dollars: float


class SessionChanged(Body, frozen=True, kw_only=True, tag="session.changed"):
    """Fields of the session's request have new values; the others are null. `budget_usd` includes the amount that was
    spent already. Values of headers and variables are `***`. `key` identifies the change to a live agent."""

    budget_usd: float | None = None
    model: str | None = None
    image: str | None = None
    system: str | None = None
    mcp: dict[str, Any] | None = None
    env: dict[str, str] | None = None
    key: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The new values by the names of the request's fields."""
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if value is not None and name != "key"}


class BudgetSet(Body, frozen=True, kw_only=True, tag="session.budget_set"):
    """The session's budget is now `dollars` in all. Older versions wrote this in place of SessionChanged."""

    dollars: float


class SessionStopped(Body, frozen=True, kw_only=True, tag="session.stopped"):
    """The session has no machine any more. Its files are kept. If `collected` is False, the latest work is only in
    these files."""

    reason: str = ""
    collected: bool = True


class SessionFinished(Body, frozen=True, kw_only=True, tag="session.finished"):
    """The work is done and collected."""


class SessionFailed(Body, frozen=True, kw_only=True, tag="session.failed"):
    """The session cannot continue."""

    failure: Failure


SessionEvent = (
    SessionCreated
    | SessionOpened
    | SessionStopAsked
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
    | SessionChanged
    | SessionStopped
    | SessionFinished
    | SessionFailed
)
