"""The view of a task for users and programs, built from the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from hiveyard.core.events import Failure, clip
from hiveyard.core.states import TaskState
from hiveyard.core.usage import Usage
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.engine.workspace.result import Diffstat, diffstat
from hiveyard.store import views
from hiveyard.store.phases import phases
from hiveyard.store.views import ResultRow, SessionRow, TaskRow, TurnRow

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_TIMEOUT, EXIT_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 124, 125, 130
PROMPT_SHOWN = 400
"""Characters of a prompt in a list of tasks."""


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of a task; the last output of `hv run --json`. `exit_code` is null while it runs. Times are in
    seconds (dates: since the epoch); `patch` is a path on the host; `waits_for` is its position in the line and what it
    waits for."""

    id: str
    slug: str
    status: TaskState
    waits_for: str = ""
    exit_code: int | None
    repo: str
    branch: str | None
    base: str | None
    commits: int
    diffstat: Diffstat
    patch: str | None
    provider: str | None
    tier: str | None
    agent: str
    program: str | None
    model: str | None
    usage: Usage
    timings: dict[str, float]
    error: Failure | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    prompt: str


def task_view(conn: Connection, id: str, workspace: Callable[[str], Workspace], waiting: Mapping[str, str]) -> TaskView:
    """Return the view of one task. Raises NotFound."""
    task = views.task(conn, id)
    turns = views.turns(conn, id)
    parts = _Parts(
        task, views.session(conn, id), views.result(conn, id), turns[-1] if turns else None, waiting.get(id, "")
    )
    return _view(parts, workspace, phases(conn, id))


def task_views(
    conn: Connection, tasks: Sequence[TaskRow], workspace: Callable[[str], Workspace], waiting: Mapping[str, str]
) -> list[TaskView]:
    """Return the views of many tasks with few queries: prompts are cut, and the times of phases are missing."""
    ids = [task.id for task in tasks]
    sessions = {row.id: row for row in views.sessions(conn, ids=ids)}
    results = {row.session: row for row in views.results(conn, ids)}
    turns = {row.session: row for row in views.turns_of(conn, ids)}
    found = []
    for task in tasks:
        task.request["prompt"] = clip(str(task.request.get("prompt", "")), PROMPT_SHOWN)
        parts = _Parts(task, sessions[task.id], results.get(task.id), turns.get(task.id), waiting.get(task.id, ""))
        found.append(_view(parts, workspace, {}))
    return found


class _Parts(NamedTuple):
    task: TaskRow
    session: SessionRow
    result: ResultRow | None
    turn: TurnRow | None
    waits_for: str


def _view(parts: _Parts, workspace: Callable[[str], Workspace], phases: Mapping[str, float]) -> TaskView:
    task, session, result, turn, waits_for = parts
    patch = workspace(task.id).patch
    return TaskView(
        id=task.id,
        slug=task.slug,
        status=task.state,
        waits_for=waits_for,
        exit_code=exit_code(task),
        repo=session.repo,
        branch=session.branch,
        base=session.base,
        commits=result.commits if result else 0,
        diffstat=diffstat(result),
        patch=str(patch) if result and result.commits and patch.exists() else None,
        provider=session.provider,
        tier=session.tier,
        agent=session.agent,
        program=turn.program if turn else None,
        model=(turn.model if turn else None) or task.request.get("model"),
        usage=session.spent,
        timings=_timings(phases, task),
        error=task.failure,
        created_at=task.created_at,
        started_at=task.started_at,
        ended_at=task.ended_at,
        prompt=str(task.request.get("prompt", "")),
    )


def exit_code(task: TaskRow) -> int | None:
    """Return the exit code of `hv run` for a task; None while it is not over."""
    if not task.state.over:
        return None
    if task.state is TaskState.COMPLETED:
        return EXIT_OK
    if task.state is TaskState.CANCELLED:
        return EXIT_INTERRUPTED
    code = task.failure.code if task.failure else ""
    if code == "agent.timeout":
        return EXIT_TIMEOUT
    return EXIT_FAILED if code.startswith(("agent", "door", "credentials")) else EXIT_ERROR


def _timings(phases: Mapping[str, float], task: TaskRow) -> dict[str, float]:
    """Return the seconds of each phase, and the total from request to end."""
    timings = {phase: round(seconds, 4) for phase, seconds in phases.items()}
    if task.ended_at is not None:
        timings["total"] = round(task.ended_at - task.created_at, 4)
    return timings
