"""Facts about tasks: jobs that were asked for."""

from __future__ import annotations

from typing import Any

from hiveyard.core.events.body import Body, Failure


class TaskCreated(Body, frozen=True, kw_only=True, tag="task.created"):
    """A job was accepted. `request` is the request as it came, complete: the task can be done again from it."""

    slug: str
    request: dict[str, Any]


class TaskAssigned(Body, frozen=True, kw_only=True, tag="task.assigned"):
    """It was decided where the task runs; `why` says how `auto` decided."""

    provider: str
    tier: str
    machine: str
    why: str = ""


class TaskStarted(Body, frozen=True, kw_only=True, tag="task.started"):
    """The agent is at work."""


class TaskCompleted(Body, frozen=True, kw_only=True, tag="task.completed"):
    """The agent succeeded and its result was collected."""


class TaskFailed(Body, frozen=True, kw_only=True, tag="task.failed"):
    """The task ended without success; what there was of a result was collected."""

    failure: Failure


class TaskCancelAsked(Body, frozen=True, kw_only=True, tag="task.cancel_asked"):
    """A person asked for the end of the task; the end itself follows."""


class TaskCancelled(Body, frozen=True, kw_only=True, tag="task.cancelled"):
    """A person ended the task; what there was of a result was collected."""

    reason: str = ""


TaskEvent = TaskCreated | TaskAssigned | TaskStarted | TaskCompleted | TaskFailed | TaskCancelAsked | TaskCancelled
