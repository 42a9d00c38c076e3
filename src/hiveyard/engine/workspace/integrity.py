"""Check that a session's directory is complete: it may have been edited by hand, or copied in part."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.engine.resources import Resources
from hiveyard.engine.workspace.session_files import files_of
from hiveyard.repository.git import git
from hiveyard.store import lineage, views
from hiveyard.store.views import SessionRow


async def check_integrity(resources: Resources, session: SessionRow) -> None:
    """Raise SessionDamaged, naming a missing file that the session needs to resume, or StoreTooNew. A session whose
    repository was not cloned yet needs no file."""
    if session.base is None:
        return
    await check_origin(resources, session)
    names = await resources.event_log.read(lambda conn: _required(conn, session.id))
    if session.provider is None:
        resources.workspace(session.id).check_shared(names)  # its files are still those that the host made
    else:
        await files_of(resources, session).check(names)


async def check_origin(resources: Resources, session: SessionRow) -> None:
    """Check the part that a snapshot needs, too: all but the files that the guest can write. Raises as above."""
    await anyio.to_thread.run_sync(resources.workspace(session.id).check)
    await check_commits(resources, session)


async def check_commits(resources: Resources, session: SessionRow) -> None:
    """Check that the base and the collected commit exist. Raises SessionDamaged."""
    if session.base is None:
        return
    workspace = resources.workspace(session.id)
    result = await resources.event_log.read(lambda conn: views.result(conn, session.id))
    for commit in dict.fromkeys([session.base, *([result.head] if result else [])]):
        if not await _has(workspace.origin, commit):
            raise workspace.damaged(f"origin.git lacks commit {commit[:12]}")


async def _has(origin: Path, commit: str) -> bool:
    return (await git("cat-file", "-e", f"{commit}^{{commit}}", at=origin)).ok


def _required(conn: Connection, id: str) -> list[str]:
    """Return the directories that a session has once it has run."""
    if not lineage.has_run(conn, id):
        return []
    return ["repo", *(["state"] if lineage.conversation(conn, id) else [])]
