"""Whether all is there that a session stands on: its directory may have been edited by hand, or copied in part."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.engine.resources import Resources
from hiveyard.repository.git import git
from hiveyard.store import lineage, views
from hiveyard.store.views import SessionRow


async def check_integrity(resources: Resources, session: SessionRow) -> None:
    """Raises SessionDamaged with what is missing that the session needs to go on, StoreTooNew. One whose repository
    was not cloned yet needs nothing."""
    if session.base is None:
        return
    await check_origin(resources, session)
    wanted = await resources.event_log.read(lambda conn: _wanted(conn, session.id))
    await anyio.to_thread.run_sync(resources.workspace(session.id).check_shared, wanted)


async def check_origin(resources: Resources, session: SessionRow) -> None:
    """Of that, what a snapshot of the session needs, too: all but what it can write itself. Raises as above."""
    await anyio.to_thread.run_sync(resources.workspace(session.id).check)
    await check_commits(resources, session)


async def check_commits(resources: Resources, session: SessionRow) -> None:
    """Of that, where its work begins and what was brought out of it. Raises SessionDamaged."""
    if session.base is None:
        return
    workspace = resources.workspace(session.id)
    result = await resources.event_log.read(lambda conn: views.result(conn, session.id))
    for commit in dict.fromkeys([session.base, *([result.head] if result else [])]):
        if not await _has(workspace.origin, commit):
            raise workspace.damaged(f"origin.git lacks commit {commit[:12]}")


async def _has(origin: Path, commit: str) -> bool:
    return (await git("cat-file", "-e", f"{commit}^{{commit}}", at=origin)).ok


def _wanted(conn: Connection, id: str) -> list[str]:
    """What is in the guest's part of the directory since the session ran."""
    if not lineage.has_run(conn, id):
        return []
    return ["repo", *(["state"] if lineage.conversation(conn, id) else [])]
