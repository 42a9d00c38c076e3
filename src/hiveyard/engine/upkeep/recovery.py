"""Clean up after a crash: compare the journal with what exists, and remove machines, doors and half-made sessions that
belong to no open task. Level-triggered: running it again changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import SessionRewound
from hiveyard.core.machines import MachineStatus
from hiveyard.core.ports import Provider
from hiveyard.core.states import AT_WORK
from hiveyard.engine.placement.machine_lease import MachineLease, machine_name
from hiveyard.engine.resources import Resources
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.trees import remove_tree
from hiveyard.store import journal, lineage, views
from hiveyard.store.views import MachineRow

log = logging.getLogger(__name__)


async def clean_up(resources: Resources, roots: Sequence[Path]) -> list[Path]:
    """Remove the doors of sessions that are over, and files that a killed daemon left half made in the session
    directories `roots`. Rename directories of sessions that never started or are half removed, and return their new
    paths for `remove_leftovers`. No session may start meanwhile: its files would be removed."""
    needed = await _needed_machines(resources)
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


async def remove_leftovers(resources: Resources, leftovers: Sequence[Path], lock: Callable[[str], anyio.Lock]) -> None:
    """Remove every machine of this installation that no open task and no `--keep` needs, and the directories
    `leftovers`. Failures are logged. Tasks and sessions may start meanwhile; `lock` gives a session's lock."""
    try:
        await _remove_leftover_machines(resources, lock)
    except Exception:
        log.exception("machines that an earlier daemon left were not removed")
    for leftover in leftovers:
        try:
            await anyio.to_thread.run_sync(remove_tree, leftover)
        except Exception:
            log.exception("%s was not removed", leftover)


async def _remove_leftover_machines(resources: Resources, lock: Callable[[str], anyio.Lock]) -> None:
    there = {provider.name: await _names(provider) for provider in resources.providers.values()}
    # The journal is read last: the machine of a task that started meanwhile is journaled before it is created.
    needed = await _needed_machines(resources)
    for provider in resources.providers.values():
        for name in sorted(there[provider.name] - needed):
            row = await resources.event_log.read(lambda conn, name=name: views.find_machine(conn, name))  # type: ignore[misc]
            async with lock(row.session) if row is not None else nullcontext():
                # Checked again, because the session may have been resumed in its machine meanwhile.
                if name not in await _needed_machines(resources):
                    await _remove(resources, provider, name, row)


async def _needed_machines(resources: Resources) -> set[str]:
    tasks = await resources.event_log.read(views.tasks)
    needed = {task.id for task in tasks if not task.state.over or task.request.get("keep")}
    for session in await resources.event_log.read(lambda conn: views.sessions(conn, phases=AT_WORK)):
        if session.request is not None:
            needed.add(session.id)
    return {machine_name(id) for id in needed}


async def _names(provider: Provider) -> set[str]:
    """Return the machines of a backend; none for one that does not work here, since nothing of it could be removed."""
    try:
        return await provider.names()
    except HiveyardError as error:
        log.info("the provider %s cannot list its machines: %s", provider.name, error.message)
        return set()


async def _remove(resources: Resources, provider: Provider, name: str, row: MachineRow | None) -> None:
    log.info("removing the leftover machine %s of %s", name, provider.name)
    try:
        if row is not None and row.status is not MachineStatus.STOPPED:
            await MachineLease(row.session, provider, None, resources.event_log).release()
        await provider.terminate(name)
    except Exception:
        log.exception("%s of %s was not removed", name, provider.name)
