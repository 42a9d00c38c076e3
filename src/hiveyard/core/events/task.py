"""Events of tasks."""

from __future__ import annotations

from typing import Any

from hiveyard.core.events.body import Body, Failure


class TaskCreated(Body, frozen=True, kw_only=True, tag="task.created"):
    """A task was accepted. `request` is complete: the task can be repeated from it."""

    slug: str
    request: dict[str, Any]


class TaskAssigned(Body, frozen=True, kw_only=True, tag="task.assigned"):
    """The place for the task was chosen. `why` says how `auto` decided."""

    provider: str
    tier: str
    machine: str
    why: str = ""


class TaskStarted(Body, frozen=True, kw_only=True, tag="task.started"):
    """The agent started to work."""


class TaskCompleted(Body, frozen=True, kw_only=True, tag="task.completed"):
    """The agent succeeded and its result was collected."""


class TaskFailed(Body, frozen=True, kw_only=True, tag="task.failed"):
    """The task ended without success. The result so far was collected."""

    failure: Failure


class TaskCancelAsked(Body, frozen=True, kw_only=True, tag="task.cancel_asked"):
    """The user asked to cancel the task. The end itself follows."""


class TaskCancelled(Body, frozen=True, kw_only=True, tag="task.cancelled"):
    """The task was cancelled by the user. The result so far was collected."""

    reason: str = ""


TaskEvent = TaskCreated | TaskAssigned | TaskStarted | TaskCompleted | TaskFailed | TaskCancelAsked | TaskCancelled
