"""Clean up after a crash: compare the journal with what exists, and remove machines, doors and half-made sessions that
belong to no open task. Level-triggered: running it again changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.events import SessionRewound
from hiveyard.engine.placement.machine_lease import machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.upkeep.reconciler import Reconciler, needed_machines
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.trees import remove_tree
from hiveyard.store import journal, lineage

log = logging.getLogger(__name__)


async def clean_up(resources: Resources, roots: Sequence[Path]) -> list[Path]:
    """Remove the doors of sessions that are over, and files that a killed daemon left half made in the session
    directories `roots`. Rename directories of sessions that never started or are half removed, and return their new
    paths for `remove_leftovers`. No session may start meanwhile: its files would be removed."""
    needed = await needed_machines(resources)
    for door in list(resources.door_directory.glob("*")):
        if machine_name(door.name) not in needed:
            await anyio.to_thread.run_sync(partial(remove_tree, door, quiet=True))
    await anyio.to_thread.run_sync(_clean_up_all, roots)
    for root in roots:
        workspace = Workspace(root)
        if snapshot_files.is_ready(workspace) and not await resources.event_log.read(
            partial(_has_pending_rewind, id=root.name)
        ):
            await anyio.to_thread.run_sync(snapshot_files.clear, workspace)
    known = frozenset(await resources.event_log.read(journal.sessions_with_events))
    return await anyio.to_thread.run_sync(_set_aside, roots, known)


def _has_pending_rewind(conn: Connection, id: str) -> bool:
    return isinstance(lineage.pending_start(conn, id), SessionRewound)


def _clean_up_all(roots: Sequence[Path]) -> None:
    for root in roots:
        Workspace(root).tidy()


def _set_aside(roots: Sequence[Path], known: frozenset[str]) -> list[Path]:
    """Rename the directories that can be removed, and return their new paths. A directory with work in it stays, even
    if the journal does not know it: the journal may have been lost."""
    away = []
    for root in roots:
        workspace = Workspace(root)
        try:
            if root.name in known:
                # The daemon was killed right before or after it journaled the session: the journal decides.
                workspace.unfinished.unlink(missing_ok=True)
            elif not workspace.has_started:
                log.info("removing the leftover session directory %s", root)
                away.append(workspace.rename_for_removal())
        except OSError:
            log.exception("%s could not be cleaned up", root)
    return away


async def remove_leftovers(reconciler: Reconciler, leftovers: Sequence[Path]) -> None:
    """Remove every machine of this installation that no open task and no `--keep` needs, and the directories
    `leftovers`. Failures are logged. Tasks and sessions may start meanwhile."""
    try:
        await reconciler.run(at_once=True)
    except Exception:
        log.exception("machines that an earlier daemon left were not removed")
    for leftover in leftovers:
        try:
            await anyio.to_thread.run_sync(remove_tree, leftover)
        except Exception:
            log.exception("%s was not removed", leftover)
