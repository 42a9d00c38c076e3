"""Find the result of a task or session on the host."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from hiveyard.core.states import Phase
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.store import lineage, views
from hiveyard.store.views import ResultRow, SessionRow


class Diffstat(msgspec.Struct, frozen=True, kw_only=True):
    """The size of the change between base and branch."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


class ResultLocation(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a result. `repo` is the user's repository; `origin` is the host's bare repository with `branch`.
    `head` is null until work was collected; `patch` is null if there is none. `over` is false while a task's result is
    still to come. `notice` says what is missing in the result."""

    id: str
    repo: str
    origin: str
    branch: str
    base: str
    head: str | None
    commits: int
    diffstat: Diffstat
    patch: str | None
    over: bool
    notice: str = ""


def source(conn: Connection, id: str, workspace: Workspace) -> ResultLocation:
    """Return the place of a result. Raises NotFound."""
    session, result, task = views.session(conn, id), views.result(conn, id), views.find_task(conn, id)
    return ResultLocation(
        id=id,
        repo=session.repo,
        origin=str(workspace.origin),
        branch=session.branch or "",
        base=session.base or "",
        head=result.head if result else None,
        commits=result.commits if result else 0,
        diffstat=diffstat(result),
        patch=str(workspace.patch) if result and result.commits and workspace.patch.exists() else None,
        over=task is None or task.state.over,
        notice=missing_work(conn, session, workspace),
    )


def missing_work(conn: Connection, session: SessionRow, workspace: Workspace) -> str:
    """Return a notice if a session's machine ended before its last work was collected; else an empty text."""
    if session.phase is not Phase.STOPPED or lineage.is_collected(conn, session.id):
        return ""
    lost = "its machine ended before its last work was collected"
    return f"{lost}: the files are in {workspace.files}; hv resume {session.slug} continues with them"


def diffstat(result: ResultRow | None) -> Diffstat:
    if result is None:
        return Diffstat()
    return Diffstat(files=result.files, insertions=result.insertions, deletions=result.deletions)
