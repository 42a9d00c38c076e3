"""Where the result of a task or session lies on the host."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from hiveyard.core.states import Phase
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.store import lineage, views
from hiveyard.store.views import ResultRow, SessionRow


class Diffstat(msgspec.Struct, frozen=True, kw_only=True):
    """How much changed between base and branch."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0


class ResultLocation(msgspec.Struct, frozen=True, kw_only=True):
    """`repo` is what it was made from; `origin` is the host's own bare repository that holds `branch`. `head` is null
    until something was collected, `patch` where there is nothing. `over`: it is no task whose result is to come.
    `notice` says what it lacks."""

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
    """Raises NotFound."""
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
        notice=lacking(conn, session, workspace),
    )


def lacking(conn: Connection, session: SessionRow, workspace: Workspace) -> str:
    """What the result of a session lacks whose machine ended before it gave out what was done last."""
    if session.phase is not Phase.STOPPED or lineage.is_collected(conn, session.id):
        return ""
    lost = "its machine ended before what was done last was brought out"
    return f"{lost}: that lies in {workspace.shared / 'repo'}; hv resume {session.slug} brings it along"


def diffstat(result: ResultRow | None) -> Diffstat:
    if result is None:
        return Diffstat()
    return Diffstat(files=result.files, insertions=result.insertions, deletions=result.deletions)
