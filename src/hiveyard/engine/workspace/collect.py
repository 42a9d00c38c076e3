"""Bringing an agent's work out of its guest, and writing down what it was."""

from __future__ import annotations

from hiveyard import repository
from hiveyard.core.events import Notice, ResultCollected
from hiveyard.core.ports import Guest
from hiveyard.engine.resources import Resources
from hiveyard.repository import Collected
from hiveyard.store import views
from hiveyard.store.views import ResultRow


async def collect_result(id: str, guest: Guest, resources: Resources, *, turn: int) -> ResultRow:
    """Take the branch and the patch of task `id` out of its guest, and journal the result, which replaces an earlier
    one. Raises what `repository.collect` raises."""
    async with resources.event_log.phase(id, "collect"):
        got = await _collected(id, guest, resources, aside=False)
    return await _told(id, got, resources, turn)


async def collect_work(id: str, guest: Guest, resources: Resources) -> None:
    """The same of session `id`, whose repository stays as it is. What has come out before is not told again."""
    got = await _collected(id, guest, resources, aside=True)
    known = await resources.event_log.read(lambda conn: views.result(conn, id))
    if known is None or known.head != got.head:
        await _told(id, got, resources, None)


async def _collected(id: str, guest: Guest, resources: Resources, *, aside: bool) -> Collected:
    workspace = resources.workspace(id)
    session = await resources.event_log.read(lambda conn: views.session(conn, id))
    assert session.base is not None and session.branch is not None
    place = workspace.origin, workspace.result
    async with resources.event_log.progress(id, "collecting the work") as report:
        return await repository.collect(
            guest, *place, base=session.base, branch=session.branch, aside=aside, report=report
        )


async def _told(id: str, got: Collected, resources: Resources, turn: int | None) -> ResultRow:
    event_log = resources.event_log
    session = await event_log.read(lambda conn: views.session(conn, id))
    assert session.base is not None and session.branch is not None
    result = ResultCollected(
        branch=session.branch,
        base=session.base,
        head=got.head,
        commits=got.commits,
        files=got.files,
        insertions=got.insertions,
        deletions=got.deletions,
        leftover=got.leftover,
    )
    await event_log.record(id, *[Notice(message=notice) for notice in got.notices], result, turn=turn)
    collected = await event_log.read(lambda conn: views.result(conn, id))
    assert collected is not None
    return collected
