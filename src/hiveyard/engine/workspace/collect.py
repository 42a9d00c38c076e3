"""Collect an agent's work from its guest, and record the result."""

from __future__ import annotations

import anyio

from hiveyard import repository
from hiveyard.core.errors import CollectTimeout
from hiveyard.core.events import Notice, ResultCollected
from hiveyard.core.ports import Guest
from hiveyard.engine.resources import Resources
from hiveyard.repository import Collected
from hiveyard.store import views


async def collect_work(id: str, guest: Guest, resources: Resources, *, turn: int | None = None) -> None:
    """Collect the work of session `id` and record the result, unless it is the recorded one already. With `turn`, the
    only one of a task, what is not committed is committed in the guest, too; else the repository in the guest does not
    change. Raises as `collect`."""
    got = await collect(id, guest, resources, aside=turn is None)
    known = await resources.event_log.read(lambda conn: views.result(conn, id))
    if known is None or known.head != got.head:
        await record_result(id, got, resources, turn=turn)


async def collect(id: str, guest: Guest, resources: Resources, *, aside: bool) -> Collected:
    """Copy the branch and the patch of a task or session out of its guest. With `aside` the repository in the guest
    does not change. Raises CollectTimeout after `collect_timeout` seconds, and what `repository.collect` raises."""
    workspace, settings = resources.workspace(id), resources.settings
    session = await resources.event_log.read(lambda conn: views.session(conn, id))
    assert session.base is not None and session.branch is not None
    # Git in the guest runs filters that the guest configured, and they may never end.
    with anyio.move_on_after(settings.collect_timeout):
        async with resources.event_log.progress(id, "collecting the work") as report:
            return await repository.collect(
                guest,
                workspace.origin,
                workspace.result,
                base=session.base,
                branch=session.branch,
                largest=settings.collect_file_mib << 20,
                aside=aside,
                report=report,
            )
    raise CollectTimeout(
        f"collecting took longer than {settings.collect_timeout:g}s and was stopped",
        hint="[engine] collect_timeout in the settings changes the limit",
    )


async def record_result(id: str, got: Collected, resources: Resources, *, turn: int | None) -> None:
    """Record the result of a task or session, which replaces an earlier one."""
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
